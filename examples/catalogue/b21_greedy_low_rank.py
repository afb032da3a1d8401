"""B21: from a tiny start the flow visits the best matrices of rank 1, 2, 3 one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, below
from shared import stack

import gflow

TARGET = np.array([3.0, 2.0, 1.0, 0.0])
TRUNCATED = np.stack([np.diag(TARGET * (np.arange(4) < k)) for k in (1, 2, 3)])


def full_loss(model, target):
    """¼ ‖UUᵀ − M‖²."""
    return jnp.sum((model.effective() - target) ** 2) / 4


OBSERVE = {"distance": lambda model, _: jnp.linalg.norm(model.effective() - TRUNCATED, axis=(1, 2))}


def run(quick: bool) -> Entry:
    """Least distances to the truncations of M, and the phases of greedy low-rank learning, on three seeds."""
    least, paths = {}, {}
    for scale in (1e-6,) if quick else (1e-2, 1e-4, 1e-6):
        starts = [
            gflow.models.SymmetricFactorisation.normal(4, scale, key=jax.random.key(s)) for s in range(3)
        ]
        paths[scale] = gflow.integrate(
            stack(starts),
            np.diag(TARGET),
            60.0,
            loss=full_loss,
            ensemble=True,
            rtol=1e-10,
            atol=1e-10 * scale,
            save_at=3001,
            observe=OBSERVE,
        )
        least[scale] = paths[scale]["distance"].min(axis=1).max(axis=0)
    checks = [
        below(
            f"α = 1e-6: least distance to the best matrix of rank {k + 1}, worst of 3 seeds",
            least[1e-6][k],
            bound,
        )
        for k, bound in enumerate((0.05, 1e-3, 1e-8))
    ]
    greedy = gflow.bias.greedy_low_rank(lambda x: jnp.sum((x - np.diag(TARGET)) ** 2) / 4, 4)
    phases = max(np.linalg.norm(x - exact) for x, exact in zip(greedy.matrices[1:], TRUNCATED, strict=True))
    checks.append(below("greedy low-rank learning: largest distance of its phases to them", phases, 1e-4))

    def draw(figure):
        flow, axes = paths[1e-6], figure.subplots()
        axes.semilogy(flow.t, flow["distance"][0], label=["rank 1", "rank 2", "rank 3"])
        axes.set(xlabel="t", ylabel="distance to the best of each rank", xlim=(0, 40))
        axes.legend()

    return Entry(
        "From an infinitesimal start the flow of UUᵀ passes by the saddles of rank 1, 2, …, as "
        "greedy low-rank learning does.",
        "Li, Luo and Lyu, ICLR 2021, arXiv:2012.09839",
        checks,
        draw,
    )
