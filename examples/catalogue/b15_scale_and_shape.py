"""B15: beside the scale of the start, its shape decides which solution the flow chooses."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, below, holds
from references import closest, hypentropy_limit
from shared import error, interpolate, predictors, regression, stack

import gflow

SHAPES = ((0.1, 0.1), (1.0, 0.01), (3.0, 0.01 / 3))


def run(quick: bool) -> Entry:
    """One branch from random starts, two from equal ones, on three seeds."""
    one, two, norms = 0.0, 0.0, []
    for seed in range(3):
        x, y = regression(seed)
        u, v = np.random.default_rng(seed + 100).normal(size=(2, 12))
        start = gflow.models.UnsharedDiagonal(jnp.array([u, v]))
        (found,) = predictors(interpolate(stack([start]), (x, y)))
        delta = np.abs(u**2 - v**2)
        one = max(one, error(found, hypentropy_limit(x, y, delta / 2, np.arcsinh(2 * u * v / delta))))
        found = predictors(
            interpolate(
                stack([gflow.models.UnsharedDiagonal.constant(12, shape) for shape in SHAPES]), (x, y)
            )
        )
        for (first, second), w in zip(SHAPES, found, strict=True):
            two = max(two, error(w, hypentropy_limit(x, y, first**2 + second**2)))
        shortest = closest(x, y, np.zeros(12))
        norms.append((np.abs(found).sum(axis=1), np.linalg.norm(found, axis=1) / np.linalg.norm(shortest)))
    checks = [
        below("u ⊙ v from random starts: error to the dual Newton limit, worst of 3 seeds", one, 1e-7),
        below("u₊v₊ − u₋v₋ from (u₀, v₀): error to the dual Newton limit, worst", two, 1e-7),
        holds("at fixed u₀v₀, imbalance raises ‖w‖₁", all(np.all(np.diff(l1) > 0) for l1, _ in norms)),
        holds("at fixed u₀v₀, imbalance lowers ‖w‖₂", all(np.all(np.diff(l2) < 0) for _, l2 in norms)),
        below("(3, 0.0033): ‖w‖₂/min − 1", max(l2[-1] for _, l2 in norms) - 1, 1e-3),
    ]

    def draw(figure):
        axes = figure.subplots()
        for seed, (_, l2) in enumerate(norms):
            axes.plot([np.log10(u / v) for u, v in SHAPES], l2, "o-", label=f"seed {seed}")
        axes.set(xlabel=r"shape $\log_{10}(u_0/v_0)$ at $u_0v_0=0.01$", ylabel=r"$\|w\|_2/\min$")
        axes.legend()

    return Entry(
        "With layers of their own, a diagonal network's limit depends on u₀² + v₀² and not on u₀v₀:"
        " imbalance leads to the kernel regime as a large scale does.",
        "Azulay et al., ICML 2021, arXiv:2102.09769",
        checks,
        draw,
    )
