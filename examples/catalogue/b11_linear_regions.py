"""B11: wide univariate ReLU networks have few linear regions."""

import jax
import numpy as np
from entry import Entry, below
from separable import SEEDS, follow_relu, worst

import gflow
from gflow import bias

LINE = np.stack([np.linspace(-1, 1, 4001), np.ones(4001)], axis=1)


def run(quick: bool) -> Entry:
    """Kinks, merged within 0.05, of networks of two widths that separate three intervals.

    Quick: one start of the narrower one, at a looser tolerance.
    """
    x = np.stack([np.linspace(-1, 1, 24), np.ones(24)], axis=1)
    y = np.where(np.abs(x[:, 0]) < 0.4, 1.0, -1.0)
    runs = {}
    widths = (20,) if quick else (20, 100)
    for width in widths:
        for seed in SEEDS[:1] if quick else SEEDS:
            model = gflow.models.TwoLayer.balanced(2, width, width**-0.5, key=jax.random.key(seed))
            flow = follow_relu(model, (x, y), 200, np.zeros(1), rtol=1e-4 if quick else 1e-6)
            runs[width, seed] = flow.model, int(bias.linear_regions(flow.model, LINE, 0.05)) - 1

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for (width, seed), (model, _) in runs.items():
            if width == widths[-1]:
                f = jax.vmap(model)(LINE)
                left.plot(LINE[:, 0], f / np.abs(f).max(), lw=1, label=f"start {seed}")
                kinks = -np.asarray(model.w[:, 1] / model.w[:, 0])
                turns = np.abs(np.asarray(model.v * model.w[:, 0]))
                inside = np.abs(kinks) < 1
                right.semilogy(kinks[inside], turns[inside] / turns[inside].sum(), ".", label=f"start {seed}")
        left.plot(x[:, 0], 0.5 * y, "k.", ms=4)
        left.set(xlabel="x", ylabel=r"$f(x)/\max|f|$ (dots: $y/2$)")
        right.set(xlabel="kink of a neuron", ylabel="share of the turning", ylim=(1e-6, 1.5), xlim=(-1, 1))
        right.legend(fontsize=8)

    return Entry(
        "A univariate ReLU network of any width learns three intervals with a few linear pieces only: all "
        "its neurons have their kinks in the same few places.",
        "Safran, Vardi and Lee, NeurIPS 2022, arXiv:2205.09072",
        [below("kinks, merged within 0.05", worst(kinks for _, kinks in runs.values()), 4)],
        draw,
    )
