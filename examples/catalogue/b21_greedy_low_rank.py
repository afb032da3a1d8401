"""B21: from an infinitely small start, gradient flow learns greedily, one rank after the other."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, below, close, holds
from shared import stack

import gflow

MASK = np.array([[0, 0, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])  # the entries seen
SCALES = (1e-2, 1e-4, 1e-6)
TARGET = np.diag([3.0, 2.0, 1.0, 0.0])
BOUNDS = (0.05, 1e-3, 1e-8)


def full_loss(model, target):
    """¼ ‖UUᵀ − M‖²."""
    return jnp.sum((model.effective() - target) ** 2) / 4


def distances(model, target):
    """‖X − Mₖ‖ to the truncations of M to rank 1, 2, 3."""
    truncated = [jnp.diag(jnp.where(jnp.arange(4) < k, jnp.diag(target), 0)) for k in (1, 2, 3)]
    return jnp.array([jnp.linalg.norm(model.effective() - m) for m in truncated])


def greedy_distance(ratio):
    """Distance of greedy low-rank learning to vvᵀ, v = (1, R, 1, R), and its number of phases."""
    v = np.array([1, ratio, 1, ratio])
    seen = np.outer(v, v) * MASK
    objective = lambda x: jnp.sum((MASK * x - seen) ** 2) / 4
    phases = gflow.bias.greedy_low_rank(objective, 4)
    return np.linalg.norm(np.asarray(phases.matrices[-1]) - np.outer(v, v)), len(phases.matrices) - 1


def visits(scales):
    """Flows of ¼‖UUᵀ − M‖² from U₀ = α N(0, 1), saved densely; the distances of each α and seed."""
    starts = [np.random.default_rng(seed).normal(size=(4, 4)) for seed in range(3)]
    flow = gflow.integrate(
        stack([gflow.models.SymmetricFactorisation(jnp.asarray(a * u)) for a in scales for u in starts]),
        TARGET,
        60.0,
        loss=full_loss,
        ensemble=True,
        rtol=1e-10,
        atol=1e-20,
        save_at=6001,
        observe={"distance": distances},
    )
    return flow.t, flow["distance"].reshape(len(scales), 3, 6001, 3)


def run(quick: bool) -> Entry:
    """Greedy learning of a completion problem, and the saddles that the flow visits, on three seeds."""
    distance, phases = greedy_distance(3.0)
    scales = SCALES[1 if quick else 0 :]
    t, paths = visits(scales)
    closest = paths.min(axis=2)
    checks = [
        below("completion, R = 3: distance of greedy learning to the matrix of rank one", distance, 1e-9),
        close("completion, R = 3: phases", phases, 1, 0),
    ]
    checks += [
        below(f"α = 1e-06: closest to the truncation of rank {k + 1}, worst of 3 seeds", worst, BOUNDS[k])
        for k, worst in enumerate(closest[-1].max(axis=0))
    ]
    falls = bool(np.all(np.diff(closest, axis=0) < 0))
    checks.append(holds("the smaller α, the closer to every truncation", falls))

    def draw(figure):
        panels = figure.subplots(1, len(scales), sharey=True)
        for axes, alpha, path in zip(panels, scales, paths[:, 0], strict=True):
            for k in range(3):
                axes.semilogy(t, path[:, k], lw=1.2, label=f"k = {k + 1}")
            axes.set(title=rf"$\alpha={alpha:g}$", xlabel="t", ylim=(1e-14, 30))
        figure.axes[0].set_ylabel(r"$\|UU^T-M_k\|$")
        figure.axes[0].legend()

    return Entry(
        "From an infinitely small start, the flow of UUᵀ is greedy low-rank learning: it visits critical "
        "points of rank 1, 2, … in turn, the closer the smaller the start.",
        "Li, Luo and Lyu, ICLR 2021, arXiv:2012.09839",
        checks,
        draw,
    )
