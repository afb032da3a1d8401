"""Karush-Kuhn-Tucker residuals of min ½‖θ‖² subject to qᵢ(θ) ≥ 1, the maximum margin in parameter space.

For a model homogeneous of degree D, θ/‖θ‖ is along a KKT point if θ = Σᵢ λᵢ ∇qᵢ(θ) with λ ≥ 0 and λᵢ > 0
only where qᵢ is smallest. The softmax duals serve as multipliers: up to scale they tend to them along a flow.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from gflow import _tree
from gflow.bias._homogeneity import Data, homogeneity_degree
from gflow.bias._margins import pairwise


def stationarity(
    model: Callable, data: Data, *, trainable: PyTree | Callable[[Any], bool] | None = None
) -> Float[Array, ""]:
    """β = cos(θ, Σᵢ pᵢ ∇qᵢ), p the [`gflow.bias.duals`][]: tends to 1 as a flow nears a KKT point.

    With the exponential loss this is cos(θ, −∇L), evaluated so that it survives when L underflows. The
    stationarity residual of the KKT conditions is √(2(1−β)) up to scale.

    **Raises:** `ValueError` if the model is not homogeneous, see [`gflow.bias.homogeneity_degree`][].

    ??? cite "Reference"

        K. Lyu and J. Li. Gradient Descent Maximizes the Margin of Homogeneous Neural Networks. ICLR 2020.
        [arXiv:1906.05890](https://arxiv.org/abs/1906.05890)
    """
    degree = homogeneity_degree(model, data[0], trainable=trainable)
    params, frozen = _tree.partition(model, trainable)
    smoothed = lambda params: -jax.nn.logsumexp(-pairwise(eqx.combine(params, frozen), data))
    pull = jax.grad(smoothed)(params)
    cosine = _tree.dot(params, pull) / (_tree.norm(params) * _tree.norm(pull))
    return cosine + 0 * degree  # so that the check of homogeneity is part of the result


def slackness(
    model: Callable, data: Data, *, trainable: PyTree | Callable[[Any], bool] | None = None
) -> Float[Array, ""]:
    """Σᵢ pᵢ (qᵢ/q_min − 1), p the [`gflow.bias.duals`][]: complementary slackness, tends to 0 there.

    Meaningless, and NaN, while an example is misclassified.

    **Raises:** `ValueError` if the model is not homogeneous, see [`gflow.bias.homogeneity_degree`][].
    """
    degree = homogeneity_degree(model, data[0], trainable=trainable)
    q = pairwise(model, data)
    p = jax.nn.softmax(-q.ravel()).reshape(q.shape)
    smallest = jnp.min(q)
    excess = jnp.where(jnp.isfinite(q), q / smallest - 1, 0)
    return jnp.where(smallest > 0, jnp.sum(p * excess), jnp.nan) + 0 * degree


def reconstruction_residual(
    model: Callable,
    data: Data,
    *,
    trainable: PyTree | Callable[[Any], bool] | None = None,
    iterations: int = 20_000,
) -> Float[Array, ""]:
    """min_{λ ≥ 0} ‖θ − Σᵢ λᵢ yᵢ ∇f(xᵢ)‖ / ‖θ‖: how well the parameters are explained by these examples.

    Small for the examples that a homogeneous classifier was trained on, near 1 for others, so that training
    data can be looked for by minimising it over x. For one logit and labels ±1. The non-negative least
    squares problem is solved by `optax.nnls`, with columns of unit length.

    **Raises:** `ValueError` for a model of several logits, and for labels that aren't ±1.

    ??? cite "Reference"

        N. Haim, G. Vardi, G. Yehudai, O. Shamir and M. Irani. Reconstructing Training Data from Trained
        Neural Networks. NeurIPS 2022. [arXiv:2206.07758](https://arxiv.org/abs/2206.07758)
    """
    params, frozen = _tree.partition(model, trainable)
    flat, unravel = ravel_pytree(params)
    target = flat / _tree.norm(flat)

    def all_margins(flat):
        q = pairwise(eqx.combine(unravel(flat), frozen), data)
        if q.ndim > 1:
            raise ValueError(
                f"model must return one number for a reconstruction residual, but returns "
                f"{q.shape[1]} logits."
            )
        return q

    rows = jax.jacrev(all_margins)(flat)
    sizes = jnp.linalg.norm(rows, axis=1, keepdims=True)
    columns = (rows / jnp.where(sizes > 0, sizes, 1)).T
    fit = jnp.dot(columns, optax.nnls(columns, target, iterations), precision="highest")
    return jnp.linalg.norm(target - fit)
