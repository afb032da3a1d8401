"""B16: the scale of a linear convolutional network's start, in the frequency domain."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below
from references import closest, smallest_frequency_l1
from shared import interpolate, predictors, regression, stack

import gflow

SCALES = (10.0, 1.0, 0.1, 0.01, 0.001)


def run(quick: bool) -> Entry:
    """Norms of the limits from u₁ = αe₁, u₂ = 0, on three seeds."""
    kernel, rich = [], []
    for seed in range(3):
        x, y = regression(seed)
        filters = [jnp.zeros((2, 12)).at[0, 0].set(alpha) for alpha in SCALES]
        found = predictors(interpolate(stack([gflow.models.Convolutional(f) for f in filters]), (x, y)))
        kernel.append(np.linalg.norm(found[0]) / np.linalg.norm(closest(x, y, np.zeros(12))) - 1)
        optimum = smallest_frequency_l1(x, y)
        rich.append([float(gflow.bias.frequency_norm(w)) / optimum for w in found])
    checks = [
        below("α = 10: ‖w‖₂/min − 1, worst of 3 seeds", max(kernel), 1e-6),
        above(
            "fall of the ℓ₁ norm of the spectrum over its minimum, α = 10 to 0.001, least",
            min(r[0] - r[-1] for r in rich),
            0.04,
        ),
        above("the same norm over its minimum: no solution is below", min(map(min, rich)), 1 - 1e-7),
    ]

    def draw(figure):
        axes = figure.subplots()
        for seed, ratios in enumerate(rich):
            axes.semilogx(SCALES, ratios, "o-", ms=4, label=f"seed {seed}")
        axes.set(xlabel=r"scale $\alpha$", ylabel=r"$\|\hat w\|_1/\min$")
        axes.legend()

    return Entry(
        "A linear convolutional network goes to the smallest ℓ₂ norm from a large start, and towards a small ℓ₁ norm "
        "of the spectrum, which generic data keep above its minimum, from a small one.",
        "Yun, Krishnan and Mobahi, ICLR 2021, arXiv:2010.02501",
        checks,
        draw,
    )
