"""B6: convolutional linear networks, sparse in frequency."""

import jax
import numpy as np
from entry import Entry, above, below
from references import max_frequency_margin, max_margin
from separable import SEEDS, follow, separated, teacher, worst

import gflow


def size(w):
    """Σₖ |ŵₖ| of the unitary transform."""
    return np.abs(np.fft.fft(w, norm="ortho")).sum(axis=-1)


def run(quick: bool) -> Entry:
    """The objective at margin 1, over its optimum, along the flow.

    Quick: not as far.
    """
    level = 1e7 if quick else 1e8
    paths, ends, euclidean = [], [], []
    for seed in SEEDS:
        x, y = teacher(seed, 12, 8)
        z = y[:, None] * x
        optimum = size(max_frequency_margin(z))
        model = gflow.models.Convolutional.normal(8, 2, 0.1, key=jax.random.key(seed))
        observe = {"w": lambda model, _: model.effective()}
        flow = follow(model, (x, y), level, np.linspace(0, 12, 241), observe=observe)
        w = flow["w"][separated(flow)]
        paths.append((-flow["log_loss"][separated(flow)], size(w) / (w @ z.T).min(axis=1) / optimum - 1))
        ends.append(paths[-1][1][-1])
        euclidean.append(size(max_margin(z)) / optimum - 1)

    def draw(figure):
        axes = figure.subplots()
        for seed, (reached, excess), other in zip(SEEDS, paths, euclidean, strict=True):
            (line,) = axes.loglog(reached, excess, label=f"data {seed}")
            axes.axhline(other, color=line.get_color(), ls=":")
        axes.set(
            xlabel=r"$-\log L$", ylabel=r"$\sum_k|\hat w_k|/q_{\min}$ over optimum, $-1$", xlim=(1, level)
        )
        axes.legend(title=r"dotted: largest $\ell_2$ margin", fontsize=8)

    return Entry(
        "The flow of a convolutional linear network of two layers goes to the separator whose Fourier "
        "coefficients have the smallest ℓ₁ norm at margin 1.",
        "Gunasekar, Lee, Soudry and Srebro, NeurIPS 2018, arXiv:1806.00468",
        [
            below(f"objective/optimum − 1 at −log L = {level:.0e}", worst(ends), 2e-3),
            above("the same for the largest ℓ₂ margin, least", min(euclidean), 2e-2),
        ],
        draw,
    )
