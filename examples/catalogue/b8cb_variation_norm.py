"""B8CB: wide ReLU networks reach the largest margin among all functions of variation norm 1."""

import jax.numpy as jnp
import numpy as np
from b7_homogeneous_kkt import circle, path
from entry import Entry, above, below
from references import variation_margin
from separable import SEEDS


def run(quick: bool) -> Entry:
    """2 q_min/‖θ‖² over the largest margin, from a linear program over 4000 directions.

    Quick: one network.
    """
    data = circle()
    largest = variation_margin(*data)
    widths, seeds = ((50,), SEEDS[:1]) if quick else ((12, 50, 200), SEEDS)
    runs = {(width, seed): path(width, seed) for width in widths for seed in seeds}
    ends = [2 * flow["margin"][-1] / largest for (width, _), flow in runs.items() if width >= 50]

    def draw(figure):
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for color, width in zip(("C0", "C1", "C2"), widths, strict=False):
            for seed in seeds:
                flow = runs[width, seed]
                label = f"{width} neurons" if seed == 0 else None
                gap = np.maximum(1 - 2 * flow["margin"] / largest, 1e-6)
                left.loglog(-flow["log_loss"], gap, color=color, lw=1, label=label)
        left.set(xlabel=r"$-\log L$", ylabel=r"$1-2q_{\min}/(\|\theta\|^2\gamma)$")
        left.legend(fontsize=8)
        model, (x, y) = runs[widths[-1], 0].model, data
        angles = np.linspace(0, 2 * np.pi, 721)
        f = [float(model(jnp.array([np.cos(a), np.sin(a)]))) for a in angles]
        right.plot(angles, np.array(f) / np.abs(f).max(), lw=1)
        right.plot(np.arctan2(x[:, 1], x[:, 0]) % (2 * np.pi), 0.5 * y, "k.")
        right.set(xlabel="angle of x", ylabel=r"$f(x)/\max|f|$ (dots: $y/2$)")

    return Entry(
        "Wide ReLU networks of two layers, balanced and trained to small loss, have the largest margin "
        "among all functions of variation norm 1.",
        "Chizat and Bach, COLT 2020, arXiv:2002.04486",
        [
            above("2 q_min/‖θ‖² over the largest margin γ, least", min(ends), 0.99),
            below("the same, largest", max(ends), 1.0001),
        ],
        draw,
    )
