"""B16: the scale of a linear convolutional network's start, in the frequency domain."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below, holds
from references import closest, convolutional_limit, smallest_frequency_l1
from shared import error, interpolate, predictors, regression, stack

import gflow

SCALES = (10.0, 1.0, 0.1, 0.01, 0.001)


def run(quick: bool) -> Entry:
    """Limits from u₁ = αe₁, u₂ = 0: of one example in closed form, of generic ones in norm.

    The ℓ₁ norm of the spectrum belongs to data that one Fourier transform decouples, as it does a single
    example. Five Gaussian examples are no such data: as α falls, their norm falls on some draws and rises on
    others, and stays above its minimum on all.
    """
    starts = [gflow.models.Convolutional(jnp.zeros((2, 12)).at[0, 0].set(alpha)) for alpha in SCALES]
    norm = lambda w: float(gflow.bias.frequency_norm(w))
    kernel, exact, single, generic = 0.0, 0.0, [], []
    for seed in range(3):
        x, y = regression(seed)
        found = predictors(interpolate(stack(starts), (x, y)))
        kernel = max(kernel, np.linalg.norm(found[0]) / np.linalg.norm(closest(x, y, np.zeros(12))) - 1)
        generic.append([norm(w) / smallest_frequency_l1(x, y) for w in found])
        found = predictors(interpolate(stack(starts), (x[:1], y[:1])))
        limits = [convolutional_limit(x[0], y[0], alpha) for alpha in SCALES]
        exact = max(exact, *(error(*pair) for pair in zip(found, limits, strict=True)))
        single.append([norm(w) / smallest_frequency_l1(x[:1], y[:1]) for w in found])
    checks = [
        below("one example: error to the closed form, worst of 3 seeds and 5 scales", exact, 1e-7),
        holds(
            "one example: the ℓ₁ norm of the spectrum falls with α",
            all(np.all(np.diff(r) < 0) for r in single),
        ),
        above(
            "one example: its fall over its minimum, α = 10 to 0.001, least",
            min(r[0] - r[-1] for r in single),
            0.04,
        ),
        below("five examples, α = 10: ‖w‖₂/min − 1, worst of 3 seeds", kernel, 1e-6),
        above(
            "five examples: the ℓ₁ norm of the spectrum over its minimum, which generic data do not reach",
            min(map(min, generic)),
            1.01,
        ),
    ]

    def draw(figure):
        axes = figure.subplots()
        for seed, ratios in enumerate(single):
            axes.semilogx(SCALES, ratios, "o-", ms=4, color=f"C{seed}", label=f"one example, seed {seed}")
            axes.semilogx(SCALES, generic[seed], "s:", ms=3, color=f"C{seed}", label="five examples")
        axes.set(xlabel=r"scale $\alpha$", ylabel=r"$\|\hat w\|_1/\min$")
        axes.legend(fontsize=7)

    return Entry(
        "A linear convolutional network goes to the smallest ℓ₂ norm from a large start, and from a"
        " small one towards the smallest ℓ₁ norm of the spectrum if the data decouple in frequency,"
        " as a single example does.",
        "Yun, Krishnan and Mobahi, ICLR 2021, arXiv:2010.02501",
        checks,
        draw,
    )
