"""B17: deep fully connected linear networks go to the smallest ℓ₂ norm as their start shrinks."""

import jax
import numpy as np
from entry import Entry, below, close
from references import closest
from shared import error, interpolate, predictors, regression, stack

import gflow

SCALES = np.array([0.1, 0.01, 0.001])


def run(quick: bool) -> Entry:
    """Distance to the smallest solution against the scale, for two and three layers, on three seeds.

    A start is small or not beside the solution: targets are such that the smallest one has norm one.
    """
    checks, shown = [], {}
    for layers in (2, 3):
        sizes = (12, *[6] * (layers - 1), 1)
        slopes, bound, flat = [], 0.0, 0.0
        for seed in range(3):
            x, y = regression(seed)
            y = y / np.linalg.norm(closest(x, y, np.zeros(12)))
            key = jax.random.key(seed)
            networks = stack([gflow.models.DeepLinear.normal(sizes, scale, key=key) for scale in SCALES])
            networks = interpolate(networks, (x, y), rtol=1e-9, atol=1e-12, level=1e-7)
            shortest = closest(x, y, np.zeros(12))
            distances = np.array([error(w[0], shortest) for w in predictors(networks)])
            slopes.append(np.diff(np.log10(distances))[-1] / -1)
            bound = max(bound, (distances / SCALES).max())
            ratios = [gflow.bias.singular_value_ratio(w) for w in networks.matrices[0]]
            flat = max(flat, float(np.max(np.array(ratios) / SCALES)))
            shown[layers, seed] = distances
        worst = max(slopes, key=lambda slope: abs(slope - 1))
        checks.append(
            close(f"{layers} layers: slope of log distance against log scale, worst", worst, 1.0, 0.1)
        )
        checks.append(below(f"{layers} layers: distance over scale, worst of 3 seeds", bound, 5))
        checks.append(below(f"{layers} layers: σ₂/σ₁ of the first layer over scale, worst", flat, 10))

    def draw(figure):
        axes = figure.subplots()
        for (layers, seed), distances in shown.items():
            axes.loglog(
                SCALES, distances, "o-" if layers == 2 else "s--", ms=4, label=f"{layers} layers, seed {seed}"
            )
        axes.set(xlabel="scale of the start", ylabel="distance to the smallest solution")
        axes.legend(fontsize=7)

    return Entry(
        "From a small start a deep linear network ends near the solution of smallest ℓ₂ norm, at a "
        "distance proportional to the scale, with layers of rank one.",
        "Azulay et al., ICML 2021, arXiv:2102.09769; Yun, Krishnan and Mobahi, ICLR 2021, arXiv:2010.02501",
        checks,
        draw,
    )
