"""A6: deeper diagonal networks find sparser classifiers."""

import diffrax
import numpy as np
from entry import Entry, above, below
from references import max_margin
from separable import SEEDS, follow, worst

import gflow

LOSS = 0.01
START = 0.01
TRUTH = np.r_[8.0, 4.0, 2.0, 1.0, np.zeros(96)] / np.linalg.norm([8, 4, 2, 1])


def run(quick: bool) -> Entry:
    """Cosine of β and the truth, and |β| in descending order, at a loss of 0.01."""
    depths = (1, 3) if quick else (1, 2, 3, 4, 5)
    learned, margin = {}, []
    for seed in SEEDS:
        x = np.random.default_rng(seed).normal(size=(200, 100))
        y = np.sign(x @ TRUTH)
        for depth in depths:
            model = gflow.models.Diagonal.constant(100, START ** (1 / depth), depth)
            flow = follow(model, (x, y), -np.log(LOSS), np.zeros(1), solver=diffrax.Tsit5(), atol=1e-9)
            beta = np.asarray(flow.model.effective())
            learned[depth, seed] = beta / np.linalg.norm(beta)
        separator = max_margin(y[:, None] * x)
        margin.append(separator / np.linalg.norm(separator))
    cosines = {key: beta @ TRUTH for key, beta in learned.items()}
    deep = [key for key in learned if key[0] >= 3]
    fifth = lambda beta: np.sort(np.abs(beta))[-5] / np.abs(beta).max()

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for seed in SEEDS:
            left.plot(depths, [cosines[depth, seed] for depth in depths], "o-", label=f"data {seed}")
            left.axhline(margin[seed] @ TRUTH, color=f"C{seed}", ls=":", lw=0.8)
        left.set(xlabel="depth N", ylabel=r"cosine of $\beta$ and $\beta^*$", xticks=depths)
        left.legend(title=r"dotted: $\ell_2$ margin", fontsize=8, title_fontsize=8)
        for depth in depths:
            right.semilogy(
                np.arange(1, 21), np.sort(np.abs(learned[depth, 0]))[:-21:-1], ".-", label=f"N = {depth}"
            )
        right.set(xlabel="rank i", ylabel=r"$|\beta|_{(i)}/\|\beta\|$", ylim=(1e-5, 1.5))
        right.legend(fontsize=8)

    return Entry(
        "The flow of a diagonal network of depth N ≥ 3 finds a sparse classifier, where depth 1 spreads its "
        "weights like the separator of largest ℓ₂ margin.",
        "Gissin, Shalev-Shwartz and Daniely, ICLR 2020, arXiv:1909.12051",
        [
            below(
                "N = 1: cosine of β and the truth, largest", worst(cosines[1, seed] for seed in SEEDS), 0.9
            ),
            below("separator of largest ℓ₂ margin: the same", worst(w @ TRUTH for w in margin), 0.9),
            above("N ≥ 3: cosine of β and the truth, least", min(cosines[key] for key in deep), 0.97),
            below("N ≥ 3: fifth of |β| over the largest", worst(fifth(learned[key]) for key in deep), 0.1),
        ],
        draw,
    )
