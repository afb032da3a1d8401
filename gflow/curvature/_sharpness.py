"""The sharpness: the largest eigenvalue of the Hessian of a problem."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from gflow._problem import Problem
from gflow.curvature._eigenpairs import default_hvps, default_rtol, top_eigenpairs
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
        rtol=default_rtol(dtype) if rtol is None else rtol,
        max_hvps=default_hvps(k) if max_hvps is None else max_hvps,
        random_share=share,
        key=second,
    )
    return eqx.tree_at(lambda p: p.vectors, pairs, jax.vmap(unravel)(pairs.vectors))


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
