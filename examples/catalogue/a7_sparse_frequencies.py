"""A7: deep linear convolutional networks classify with few frequencies."""

import jax
import numpy as np
from a6_sparse_classification import cosine
from entry import Entry, above, below, holds

import gflow

SIZE, SCALE, LEVEL = 50, 0.01, 0.01


def learn(depth, seed):
    """β when the exponential loss has come down to the level, and the truth."""
    random = np.random.default_rng(seed)
    truth = np.fft.irfft(np.append([3.0, 4.0, 6.0, 12.0], np.zeros(SIZE // 2 - 3)), n=SIZE)
    x = random.normal(size=(100, SIZE))
    std = (1.5 * SCALE) ** (1 / depth) * SIZE ** ((depth - 1) / depth / 2) / SIZE
    flow = gflow.integrate(
        gflow.models.Convolutional.normal(SIZE, depth, std, key=jax.random.key(seed)),
        (x, np.sign(x @ truth)),
        np.inf,
        loss=gflow.losses.Exponential(),
        rtol=1e-5,
        atol=1e-8,
        save_at=[0.0],
        stop=gflow.stop.LossBelow(LEVEL),
    )
    beta = np.asarray(flow.model.effective())
    # by the input gradient, so that no convention of the transform is taken on trust
    assert np.allclose(beta, gflow.bias.linear_predictor(flow.model, (x[:1], None)))
    return beta, truth


def run(quick: bool) -> Entry:
    """Spread over frequencies and cosine to the truth against depth, on three seeds."""
    depths, spread, cosines, spectra = (1, 3) if quick else (1, 2, 3), {}, {}, {}
    for depth in depths:
        found = [learn(depth, seed) for seed in range(3)]
        sizes = np.abs(np.fft.rfft([beta for beta, _ in found]))
        spread[depth] = sizes.sum(axis=1) / np.linalg.norm(sizes, axis=1)
        cosines[depth] = [cosine(*pair) for pair in found]
        spectra[depth] = sizes[0] / sizes[0].max()
    falls = all(np.all(spread[a] > spread[b]) for a, b in zip(depths[:-1], depths[1:], strict=True))
    checks = [
        holds("ℓ₁/ℓ₂ of the spectrum falls with depth, on 3 seeds", bool(falls)),
        below("depth 3: ℓ₁/ℓ₂ of the spectrum (truth 1.75), largest", spread[3].max(), 2.3),
        above("depth 3: cosine to the truth, least", min(cosines[3]), 0.95),
    ]

    def draw(figure):
        axes = figure.subplots()
        for depth in depths:
            axes.plot(spectra[depth], "o-", ms=3, label=f"depth {depth}")
        axes.set(xlabel="frequency", ylabel=r"$|\hat\beta_k|/\max$")
        axes.legend()

    return Entry(
        "Stopped at the same loss, a deeper linear convolutional network has learned fewer frequencies.",
        "Gissin, Shalev-Shwartz and Daniely, ICLR 2020, arXiv:1909.12051",
        checks,
        draw,
    )
