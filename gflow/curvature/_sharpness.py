"""The largest eigenvalues of the Hessian of a problem."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from gflow._problem import Problem
from gflow.curvature._lanczos import Eigenpairs, lanczos, warm_start


class Sharpness(eqx.Module):
    """The sharpness λ = λ_max(∇²L(θ)), the largest eigenvalue of the Hessian (algebraically).

    **Attributes:**

    - `value`: λ.
    - `vector`: its unit eigenvector v, a PyTree like the parameters.
    - `residual`: ‖∇²L v − λ v‖; an eigenvalue of the Hessian lies within it of λ.
    - `hvps`: how many Hessian-vector products this took.
    - `converged`: whether the residual met the tolerance.
    """

    value: Float[Array, ""]
    vector: PyTree[Array]
    residual: Float[Array, ""]
    hvps: Int[Array, ""]
    converged: Bool[Array, ""]


def track(
    problem: Problem,
    params: PyTree[Array],
    vector: PyTree[Array] | None,
    k: int = 1,
    *,
    rtol: float | Float[Array, ""] | None = None,
    max_hvps: int | Int[Array, ""] | None = None,
    key: Key[Array, ""] | None = None,
) -> Eigenpairs:
    """As [`gflow.curvature.top_eigenpairs`][], but for use inside compiled code, and warm-started.

    **Arguments:** `vector` is an eigenvector found nearby, or `None` for a random start. Nothing is
    checked and nothing is warned of: look at `converged`.
    """
    dtype = problem.dtype
    key = jax.random.key(0) if key is None else key
    first, second = jax.random.split(key)
    flat, unravel = ravel_pytree(params)
    guess = jnp.zeros_like(flat) if vector is None else ravel_pytree(vector)[0]
    start, share = warm_start(guess, first)
    pairs = lanczos(
        lambda v: ravel_pytree(problem.hvp(params, unravel(v)))[0],
        start,
        k,
        rtol=_default_rtol(dtype) if rtol is None else rtol,
        max_hvps=_default_hvps(k) if max_hvps is None else max_hvps,
        random_share=share,
        key=second,
    )
    return eqx.tree_at(lambda p: p.vectors, pairs, jax.vmap(unravel)(pairs.vectors))


_track = eqx.filter_jit(track)


def top_eigenpairs(
    problem: Problem,
    k: int = 1,
    *,
    params: PyTree[Array] | None = None,
    rtol: float | None = None,
    max_hvps: int | None = None,
    key: Key[Array, ""] | None = None,
) -> Eigenpairs:
    """The k largest eigenvalues (algebraically) of the Hessian ∇²L(θ), with eigenvectors.

    By thick-restarted Lanczos iterations on Hessian-vector products, until every residual says so:
    ‖∇²L v − λ v‖ ≤ rtol |λ|.

    **Arguments:**

    - `problem`: the loss surface.
    - `k`: how many eigenpairs, from 1 to the number of parameters.
    - `params`: where; by default `problem.params`.
    - `rtol`: the relative residual to reach; by default 1e-6 in float64 and 1e-4 in float32.
    - `max_hvps`: the most Hessian-vector products to spend; by default 1000 + 100 k.
    - `key`: a JAX random key for the start vector; always the same one by default.

    **Returns:** `Eigenpairs` with `values` (k,), `vectors` (PyTree like the parameters with a leading
    axis k), `residuals` (k,), `hvps` and `converged`. A warning says if it has not converged.

    **Raises:** `ValueError` for a k, rtol or dtype that makes no sense.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= problem.size:
        raise ValueError(
            f"k must be a number of eigenpairs from 1 to {problem.size}, the number of parameters, but "
            f"{k!r} came."
        )
    dtype = problem.dtype
    finest = float(jnp.finfo(dtype).eps)
    if dtype.itemsize < 4:
        raise ValueError(
            f"problem must have parameters in float32 or float64, but they are {dtype}, which can't resolve "
            "eigenvalues; cast the model."
        )
    if rtol is not None and not finest < rtol < 1:
        raise ValueError(
            f"rtol must lie between {finest:.1e} (the resolution of {dtype}) and 1, but {rtol!r} came."
        )
    if max_hvps is not None and (not isinstance(max_hvps, (int, np.integer)) or max_hvps < 1):
        raise ValueError(f"max_hvps must be a positive number of products or None, but {max_hvps!r} came.")
    pairs = _track(
        problem,
        problem.params if params is None else params,
        None,
        int(k),
        rtol=jnp.asarray(_default_rtol(dtype) if rtol is None else rtol, dtype),
        max_hvps=jnp.asarray(_default_hvps(k) if max_hvps is None else max_hvps),
        key=jax.random.key(0) if key is None else key,
    )
    if not pairs.converged:
        warnings.warn(
            f"the eigenvalues have not converged after {int(pairs.hvps)} Hessian-vector products: residuals "
            f"{np.asarray(pairs.residuals)} of {np.asarray(pairs.values)}; raise max_hvps or loosen rtol",
            stacklevel=2,
        )
    return pairs


def sharpness(
    model: Callable | PyTree,
    data: PyTree,
    *,
    loss: Callable | None = None,
    trainable: PyTree | Callable[[Any], bool] | None = None,
    chunk_size: int | None = None,
    rtol: float | None = None,
    max_hvps: int | None = None,
    key: Key[Array, ""] | None = None,
) -> Sharpness:
    """The sharpness of a model on data: the largest eigenvalue (algebraically) of ∇²L(θ).

    Gradient descent with learning rate η is linearly unstable where it exceeds 2/η.

    **Arguments:** `model`, `data`, `loss`, `trainable`, `chunk_size` as for [`gflow.Problem`][]; `rtol`,
    `max_hvps`, `key` as for [`gflow.curvature.top_eigenpairs`][].

    **Returns:** a [`gflow.Sharpness`][]: value, vector, residual, hvps, converged.

    **Raises:** `ValueError` for arguments that make no sense.
    """
    problem = Problem(model, data, loss, trainable=trainable, chunk_size=chunk_size)
    pairs = top_eigenpairs(problem, rtol=rtol, max_hvps=max_hvps, key=key)
    return Sharpness(
        value=pairs.values[0],
        vector=jax.tree.map(lambda v: v[0], pairs.vectors),
        residual=pairs.residuals[0],
        hvps=pairs.hvps,
        converged=pairs.converged,
    )


def _default_rtol(dtype: np.dtype) -> float:
    return 1e-6 if dtype == np.float64 else 1e-4


def _default_hvps(k: int) -> int:
    return 1000 + 100 * k
