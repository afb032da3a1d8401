"""A6: deep diagonal networks classify with few features."""

import numpy as np
from entry import Entry, above, below

import gflow

SIZE, SCALE, LEVEL = 100, 0.01, 0.01


def learn(depth, seed):
    """β when the exponential loss has come down to the level, and the truth."""
    random = np.random.default_rng(seed)
    x, truth = random.normal(size=(200, SIZE)), np.append([8.0, 4.0, 2.0, 1.0], np.zeros(SIZE - 4))
    flow = gflow.integrate(
        gflow.models.Diagonal.constant(SIZE, SCALE ** (1 / depth), depth),
        (x, np.sign(x @ truth)),
        np.inf,
        loss=gflow.losses.Exponential(),
        rtol=1e-5,
        atol=1e-8,
        save_at=[0.0],
        stop=gflow.stop.LossBelow(LEVEL),
    )
    return np.asarray(flow.model.effective()), truth


def cosine(a, b):
    """The cosine of the angle between two vectors."""
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def run(quick: bool) -> Entry:
    """Cosines to the truth, and how fast the entries fall off, on three seeds."""
    depths, checks, shown, cosines = (1, 3) if quick else (1, 2, 3, 4, 5), [], {}, {}
    for depth in depths:
        found = [learn(depth, seed) for seed in range(3)]
        cosines[depth] = [cosine(*pair) for pair in found]
        entries = np.sort([np.abs(beta) / np.abs(beta).max() for beta, _ in found], axis=1)[:, ::-1]
        shown[depth] = entries[0]
        if depth == 1:
            checks.append(below("depth 1: cosine to the truth, largest of 3 seeds", max(cosines[1]), 0.9))
        if depth >= 3:
            what = f"depth {depth}: cosine to the truth, least of 3 seeds"
            checks.append(above(what, min(cosines[depth]), 0.97))
            checks.append(below(f"depth {depth}: 5th entry over the 1st, largest", entries[:, 4].max(), 0.1))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for depth in depths:
            left.semilogy(np.arange(1, 11), shown[depth][:10], "o-", ms=3, label=f"depth {depth}")
        left.set(xlabel="entry, sorted", ylabel=r"$|\beta_i|/\max$")
        left.legend(fontsize=7)
        right.plot(depths, [cosines[depth] for depth in depths], "o", ms=4)
        right.set(xlabel="depth", ylabel="cosine to the truth")

    return Entry(
        "Stopped at the same loss, a deeper diagonal network has learned the few features that "
        "matter, and hardly any others.",
        "Gissin, Shalev-Shwartz and Daniely, ICLR 2020, arXiv:1909.12051",
        checks,
        draw,
    )
