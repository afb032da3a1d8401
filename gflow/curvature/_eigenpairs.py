"""The eigenpairs at either end of the spectrum of the Hessian, or of another symmetric operator."""

import warnings
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from gflow import _tree
from gflow._problem import Problem
from gflow.curvature._lanczos import Eigenpairs, lanczos
from gflow.curvature._operators import as_operator, on_vectors

_SIGNS = {"largest": (1,), "smallest": (-1,), "both": (1, -1)}


def top_eigenpairs(
    problem: Problem | lx.AbstractLinearOperator,
    k: int = 1,
    *,
    params: PyTree[Array] | None = None,
    which: Literal["largest", "smallest", "both"] = "largest",
    rtol: float | None = None,
    max_hvps: int | None = None,
    key: Key[Array, ""] | None = None,
) -> Eigenpairs:
    """The k largest eigenvalues (algebraically) of the Hessian ∇²L(θ), with eigenvectors; or the smallest.

    By thick-restarted Lanczos iterations on Hessian-vector products, until every residual says so:
    ‖∇²L v − λ v‖ ≤ rtol |λ| + 30 eps ‖∇²L‖. Repeated eigenvalues come as often as they are.

    **Arguments:**

    - `problem`: the loss surface; or any other symmetric operator, such as
        [`gflow.curvature.gauss_newton`][], [`gflow.curvature.block`][] or
        [`gflow.curvature.preconditioned`][] give it.
    - `k`: how many eigenpairs, from 1 to the number of parameters.
    - `params`: where; by default `problem.params`.
    - `which`: `"largest"`, `"smallest"`, or `"both"` for k at each end, at most half of all.
    - `rtol`: the relative residual to reach; by default 1e-6 in float64 and 1e-4 in float32.
    - `max_hvps`: the most Hessian-vector products to spend, on each end; by default 1000 + 100 k.
    - `key`: a JAX random key for the start vector; always the same one by default.

    **Returns:** [`gflow.curvature.Eigenpairs`][], the eigenvalues in descending order. A warning says if it
    has not converged, or if the operator gave NaN or infinity, and `converged` is then False.

    **Raises:** `ValueError` for a k, rtol or dtype that makes no sense, and for an operator that isn't
    symmetric.
    """
    operator = as_operator(problem, params)
    if which not in _SIGNS:
        raise ValueError(f'which must be "largest", "smallest" or "both", but {which!r} came.')
    signs = _SIGNS[which]
    most = operator.in_size() // len(signs)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= most:
        meaning = "half the number of parameters" if which == "both" else "the number of parameters"
        raise ValueError(f"k must be a number of eigenpairs from 1 to {most}, {meaning}, but {k!r} came.")
    dtype = jtu.tree_leaves(operator.in_structure())[0].dtype
    finest = float(jnp.finfo(dtype).eps)
    if rtol is not None and not finest < rtol < 1:
        raise ValueError(
            f"rtol must lie between {finest:.1e} (the resolution of {dtype}) and 1, but {rtol!r} came."
        )
    if max_hvps is not None and (not isinstance(max_hvps, (int, np.integer)) or max_hvps < 1):
        raise ValueError(f"max_hvps must be a positive number of products or None, but {max_hvps!r} came.")
    pairs = solve(
        operator,
        int(k),
        jnp.asarray(signs, dtype),
        rtol=jnp.asarray(default_rtol(dtype) if rtol is None else rtol, dtype),
        max_hvps=jnp.asarray(default_hvps(k) if max_hvps is None else max_hvps),
        key=jax.random.key(0) if key is None else key,
    )
    warn_unless_converged(pairs, "raise max_hvps or loosen rtol")
    return pairs


def warn_unless_converged(pairs: Eigenpairs, remedy: str) -> None:
    """Warns the user of a public function two calls up of what the pairs are not."""
    if _tree.is_traced(pairs.converged) or pairs.converged:
        return
    spent = f"after {int(pairs.hvps)} Hessian-vector products"
    if np.all(np.isnan(pairs.values)):
        message = f"the operator gave NaN or infinity {spent}: there are no eigenvalues; check the parameters"
    else:
        message = (
            f"the eigenvalues have not converged {spent}: residuals {np.asarray(pairs.residuals)} of "
            f"{np.asarray(pairs.values)}; {remedy}"
        )
    warnings.warn(message, stacklevel=3)


@eqx.filter_jit
def solve(
    operator: lx.AbstractLinearOperator,
    k: int,
    signs: Float[Array, "ends"],
    *,
    rtol: Float[Array, ""],
    max_hvps: Int[Array, ""],
    key: Key[Array, ""],
) -> Eigenpairs:
    """The k largest eigenpairs of sign·A for each sign, as eigenpairs of A in descending order."""
    matvec, unravel, zero = on_vectors(operator)
    first, second = jax.random.split(key)
    start = jax.random.normal(first, zero.shape, zero.dtype)

    def at_end(sign):
        return lanczos(
            lambda v: sign * matvec(v),
            start,
            k,
            rtol=rtol,
            max_hvps=max_hvps,
            random_share=1.0,
            seed=jax.random.bits(second),
        )

    ends = lax.map(at_end, signs)
    values = jnp.ravel(signs[:, None] * ends.values)
    order = jnp.argsort(-values)
    return Eigenpairs(
        values=values[order],
        vectors=jax.vmap(unravel)(ends.vectors.reshape(-1, zero.size)[order]),
        residuals=jnp.ravel(ends.residuals)[order],
        hvps=jnp.sum(ends.hvps),
        converged=jnp.all(ends.converged),
    )


def default_rtol(dtype: np.dtype) -> float:
    """What eigenpairs in this dtype are solved to."""
    return 1e-6 if dtype == np.float64 else 1e-4


def default_hvps(k: int) -> int:
    """The budget for k eigenpairs."""
    return 1000 + 100 * k
