"""A7: deeper convolutional networks find classifiers sparser in frequency."""

import diffrax
import jax
import numpy as np
from entry import Entry, above, below, holds
from references import max_margin
from separable import SEEDS, follow, worst

import gflow
from gflow import bias

LOSS, START, SIZE = 0.01, 0.01, 50
TRUTH = np.fft.irfft(np.r_[3.0, 4.0, 6.0, 12.0, np.zeros(SIZE // 2 - 3)], n=SIZE)
TRUTH /= np.linalg.norm(TRUTH)


def spread(w):
    """ℓ₁ over ℓ₂ norm of the discrete Fourier transform at its non-negative frequencies."""
    transform = np.abs(np.fft.rfft(w))
    return transform.sum() / np.linalg.norm(transform)


def run(quick: bool) -> Entry:
    """Predictors by input gradient, their cosine with the truth and their spread in frequency."""
    depths = (1, 2, 3)
    learned, margin = {}, []
    for seed in SEEDS:
        x = np.random.default_rng(seed).normal(size=(100, SIZE))
        y = np.sign(x @ TRUTH)
        for depth in depths:
            std = (1.5 * START) ** (1 / depth) * SIZE ** ((depth - 1) / (2 * depth)) / SIZE
            model = gflow.models.Convolutional.normal(SIZE, depth, std, key=jax.random.key(seed))
            flow = follow(
                model, (x, y), -np.log(LOSS), np.zeros(1), solver=diffrax.Tsit5(), rtol=1e-5, atol=1e-9
            )
            learned[depth, seed] = np.asarray(bias.linear_predictor(flow.model, (x, y)))
        margin.append(max_margin(y[:, None] * x))
    cosine = lambda w: w @ TRUTH / np.linalg.norm(w)
    spreads = np.array([[spread(learned[depth, seed]) for depth in depths] for seed in SEEDS])

    def draw(figure):
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for depth in depths:
            transform = np.abs(np.fft.rfft(learned[depth, 0]))
            left.plot(transform / np.linalg.norm(transform), ".-", label=f"N = {depth}")
        transform = np.abs(np.fft.rfft(TRUTH))
        left.plot(transform / np.linalg.norm(transform), "k_", ms=9, label="truth")
        left.set(xlabel="frequency k", ylabel=r"$|\hat\beta_k|/\|\hat\beta\|$")
        left.legend(fontsize=8)
        for seed in SEEDS:
            right.plot(depths, spreads[seed], "o-", label=f"data {seed}")
        right.axhline(spread(TRUTH), color="k", ls=":", label="truth")
        right.set(xlabel="depth N", ylabel=r"$\|\hat\beta\|_1/\|\hat\beta\|_2$", xticks=depths)
        right.legend(fontsize=8)

    return Entry(
        "The flow of a deeper convolutional network finds a classifier that is sparser in frequency.",
        "Gissin, Shalev-Shwartz and Daniely, ICLR 2020, arXiv:1909.12051",
        [
            holds("the spread in frequency falls from depth to depth", bool(np.all(np.diff(spreads) < 0))),
            below("N = 3: spread in frequency (truth 1.75)", worst(spreads[:, 2]), 2.3),
            above("N = 3: cosine of β and the truth, least", min(cosine(learned[3, s]) for s in SEEDS), 0.95),
            above("separator of largest ℓ₂ margin: spread, least", min(map(spread, margin)), 3),
        ],
        draw,
    )
