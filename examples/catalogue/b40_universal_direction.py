"""B40: one direction that fools a network on every example."""

import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below
from separable import SEEDS, follow_by_euler, worst

import gflow
from gflow import bias


def run(quick: bool) -> Entry:
    """Radii at which examples change their sign, along the universal and along random directions."""
    del quick
    universal, random_ones = [], []
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        x, y = random.normal(size=(10, 200)), np.where(np.arange(10) % 2, -1.0, 1.0)
        model = gflow.models.TwoLayer.balanced(200, 50, 0.1, key=jax.random.key(seed))
        model = follow_by_euler(model, (x, y), 30, np.zeros(1)).model
        length = np.median(np.linalg.norm(x, axis=1))
        for direction, found in (
            (bias.universal_direction((x, y)), universal),
            (jnp.asarray(random.normal(size=200)), random_ones),
        ):
            found.append(np.asarray(bias.flip_radii(model, (x, y), direction, float(10 * length))) / length)
    # a random direction that does not flip the median example counts as the largest radius tried
    typical = [np.minimum(np.median(radii, axis=1), 10) for radii in (universal, random_ones)]

    def draw(figure):
        axes = figure.subplots()
        for name, color, all_radii in (("universal", "C3", universal), ("random", "C0", random_ones)):
            for radii in all_radii:
                inside = np.sort(radii[np.isfinite(radii)])
                label = f"{name} direction" if radii is all_radii[0] else None
                axes.step(np.r_[inside, 10], np.r_[np.arange(1, len(inside) + 1), len(inside)] / 10,
                          where="post", color=color, label=label)  # fmt: skip
        axes.set(xlabel=r"$r/\|x\|$", ylabel="share of examples that change sign", xscale="log")
        axes.legend()

    return Entry(
        "On nearly orthogonal examples one direction, Σ yᵢxᵢ, makes a trained ReLU network wrong on all of "
        "them after a move shorter than the examples, while a random one takes several times their length.",
        "Vardi, Yehudai and Shamir, NeurIPS 2022, arXiv:2202.04347",
        [
            below("median radius over ‖x‖, universal direction", worst(typical[0]), 0.6),
            above("median radius in a random direction over that, least", np.min(typical[1] / typical[0]), 3),
        ],
        draw,
    )
