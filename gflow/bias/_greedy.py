"""Greedy low-rank learning."""

from collections.abc import Callable
from typing import NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._numbers import count


class GreedyLowRank(NamedTuple):
    """What greedy low-rank learning went through, phase by phase.

    `matrices` has the critical points X₀ = 0, X₁, … of rank at most 0, 1, …; `eigenvalues` the largest
    eigenvalue of −∇f at each of them; `converged` says whether the last one is at most the tolerance.
    """

    matrices: list[Float[Array, "d d"]]
    eigenvalues: list[float]
    converged: bool


@jax.default_matmul_precision("highest")
def greedy_low_rank(
    objective: Callable[[Float[Array, "d d"]], Float[Array, ""]],
    size: int,
    *,
    max_rank: int | None = None,
    perturbation: float = 1e-5,
    tolerance: float = 1e-6,
) -> GreedyLowRank:
    """Greedy low-rank learning: what gradient flow on f(UUᵀ) does from an infinitely small initialisation.

    From X = UUᵀ = 0: let v be the top eigenvector of −∇f(X). If its eigenvalue is at most `tolerance`, stop.
    Otherwise append the column `perturbation` · v to U, follow the gradient flow of f(UUᵀ) until it comes to
    rest, and repeat.

    **Arguments:**

    - `objective`: f, a function of a symmetric matrix, written in `jax.numpy`.
    - `size`: d, the size of the matrix.
    - `max_rank`: the most columns to append, by default d.

    **Raises:** `ValueError` for numbers out of range; `RuntimeError` if a phase does not come to rest (in
    float32 the default numbers are too small, and an objective may have no minimum).

    ??? cite "Reference"

        Z. Li, Y. Luo and K. Lyu. Towards Resolving the Implicit Bias of Gradient Descent for Matrix
        Factorization: Greedy Low-Rank Learning. ICLR 2021. [arXiv:2012.09839](https://arxiv.org/abs/2012.09839)
    """
    max_rank = count("size", size) if max_rank is None else max_rank
    if not 1 <= max_rank <= size:
        raise ValueError(f"max_rank must be from 1 to {size}, the size of the matrix, but {max_rank!r} came.")
    if not (perturbation > 0 and tolerance > 0):
        raise ValueError(
            f"perturbation and tolerance must be positive, but {perturbation!r} and {tolerance!r} came."
        )

    def ascent(x):
        gradient = jax.grad(objective)(x)
        return -(gradient + gradient.T) / 2

    # Columns not yet begun are zero, and stay so: one program for all ranks.
    field = lambda t, u, args: 2 * ascent(u @ u.T) @ u
    # half of the speed of a perturbation at the least eigenvalue that starts a phase
    rest = perturbation * tolerance

    @eqx.filter_jit
    def settle(u):
        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            dfx.Kvaerno5(),
            t0=0,
            t1=1e3 / tolerance,
            dt0=None,
            y0=u,
            stepsize_controller=dfx.PIDController(rtol=1e-8, atol=rest),
            event=dfx.Event(lambda t, y, args, **_: jnp.linalg.norm(field(t, y, args)) < rest),
            max_steps=10_000,
            throw=False,
        )
        (end,) = jax.tree.leaves(solution.ys)
        return end[-1], solution.result == dfx.RESULTS.event_occurred

    top = jax.jit(lambda u: jnp.linalg.eigh(ascent(u @ u.T)))
    u = jnp.zeros((size, size))
    matrices, eigenvalues = [], []
    for rank in range(max_rank + 1):
        values, vectors = top(u)
        if not np.all(np.isfinite(values)):
            raise RuntimeError(
                f"the gradient of the objective is not finite at the critical point of rank {rank}."
            )
        matrices.append(u @ u.T)
        eigenvalues.append(float(values[-1]))
        if eigenvalues[-1] <= tolerance or rank == max_rank:
            break
        u, at_rest = settle(u.at[:, rank].set(perturbation * vectors[:, -1]))
        if not at_rest:
            raise RuntimeError(
                f"the flow of rank {rank + 1} did not come to rest; the objective may have no minimum, or "
                "the default numbers are too small for its scale or for float32: raise tolerance or "
                "perturbation, or enable x64."
            )
    return GreedyLowRank(matrices, eigenvalues, eigenvalues[-1] <= tolerance)
