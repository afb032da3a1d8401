"""The sharpness: the largest eigenvalue of the Hessian of a problem."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from gflow._problem import Problem
from gflow.curvature._eigenpairs import top_eigenpairs


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
