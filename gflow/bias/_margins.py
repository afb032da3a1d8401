"""Margins of classifiers: by how much the data are on the right side, per size of predictor or parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from gflow import _tree
from gflow.bias._homogeneity import (
    Data,
    as_floats,
    check_length,
    homogeneity_degree,
    outputs,
    refuse,
    refuse_signs,
)
from gflow.bias._linear import linear_predictor
from gflow.losses import check_classes


def margins(model: Callable, data: Data) -> Float[Array, " n"]:
    """Functional margins qᵢ: positive where example i is classified rightly.

    qᵢ = yᵢ f(xᵢ) for one logit and labels ±1; qᵢ = f(xᵢ)_{yᵢ} − max_{k≠yᵢ} f(xᵢ)ₖ for K logits and labels
    0 … K−1.

    **Raises:** `ValueError` for other labels, or not one for each example. In compiled code (in an observable
    of a run) wrong labels are an error when it runs.
    """
    q = pairwise(model, data)
    return q if q.ndim == 1 else jnp.min(q, axis=1)


def duals(model: Callable, data: Data) -> Float[Array, "n ..."]:
    """The weight pᵢ of each example in the gradient: softmax of the negative margins, p = softmax(−q).

    With the exponential loss −∇ log L = Σ pᵢ ∇qᵢ. As the loss vanishes the weights gather on the support
    vectors and become the multipliers of the maximum-margin problem. Shape (n,) for one logit; (n, K) for K,
    one weight for each wrong class and 0 at the right one.

    **Raises:** `ValueError` for labels that aren't ±1 (one logit) or no classes (several).
    """
    q = pairwise(model, data)
    return jax.nn.softmax(-q.ravel()).reshape(q.shape)


def linear_margin(
    model: Callable, data: Data, order: float | int = 2, *, smooth: bool = False
) -> Float[Array, ""]:
    """ℓ_p margin of a model that is linear in its input, minᵢ qᵢ / ‖w‖_p with f(x) = w·x.

    The largest over all w is the distance of the closest example to the separating hyperplane, measured in
    the dual norm: ℓ2 for p = 2, ℓ∞ for p = 1, ℓ1 for p = ∞.

    **Arguments:**

    - `order`: p, at least 1; `jnp.inf` is allowed. For several logits it is the entrywise norm.
    - `smooth`: whether −log Σᵢ exp(−qᵢ) takes the place of minᵢ qᵢ, which it bounds from below.

    **Raises:** `ValueError` for p < 1, and if f(x) = w·x fails on the data, as for a bias or a network with
    active kinks; a bias can be had as a column of ones in x. In compiled code the error arises when it runs.
    """
    if not order >= 1:
        raise ValueError(
            f"order must be at least 1, but {order!r} came; 1, 2 and jnp.inf are the usual norms."
        )
    w = linear_predictor(model, data)
    x = as_floats(data[0])
    f = outputs(model, x)
    axes = tuple(range(1, x.ndim)), tuple(range(f.ndim - 1, w.ndim))
    fit = jnp.tensordot(x, w, axes=axes, precision="highest")
    w = refuse(
        ~(jnp.max(jnp.abs(f - fit)) <= jnp.sqrt(jnp.finfo(f.dtype).eps) * jnp.max(jnp.abs(f))),
        w,
        "model must be linear in its input, f(x) = w·x, for a linear margin, but is not; give x a column of "
        "ones instead of a bias, or use parameter_margin for a homogeneous network.",
    )
    return _smallest(model, data, smooth) / jnp.linalg.norm(w.ravel(), order)


def parameter_margin(
    model: Callable,
    data: Data,
    *,
    smooth: bool = False,
    trainable: PyTree | Callable[[Any], bool] | None = None,
) -> Float[Array, ""]:
    """Normalised margin in parameter space, minᵢ qᵢ / ‖θ‖ᵈ, of a model homogeneous of degree d.

    **Arguments:**

    - `smooth`: whether −log Σᵢ exp(−qᵢ) takes the place of minᵢ qᵢ. With the exponential loss this is
        log(1/(nL)) / ‖θ‖ᵈ for the loss L, which never decreases along the gradient flow once L < 1/n.
    - `trainable`: selects θ as in [`gflow.Problem`][].

    **Raises:** `ValueError` if the model is not homogeneous, see [`gflow.bias.homogeneity_degree`][].

    ??? cite "Reference"

        K. Lyu and J. Li. Gradient Descent Maximizes the Margin of Homogeneous Neural Networks. ICLR 2020.
        [arXiv:1906.05890](https://arxiv.org/abs/1906.05890)
    """
    degree = homogeneity_degree(model, data[0], trainable=trainable)
    params, _ = _tree.partition(model, trainable)
    return _smallest(model, data, smooth) / _tree.norm(params) ** degree


def pairwise(model: Callable, data: Data) -> Float[Array, "n ..."]:
    """yᵢ f(xᵢ), shape (n,), or f(xᵢ)_{yᵢ} − f(xᵢ)ₖ, shape (n, K), with ∞ at k = yᵢ."""
    x, y = data
    f = outputs(model, x)
    y = jnp.asarray(y)
    if f.ndim > 2 or (f.ndim == 2 and f.shape[1] < 2):
        raise ValueError(
            f"model must return one number or a vector of at least two logits for a margin, but its output "
            f"has shape {f.shape[1:]}; squeeze it."
        )
    check_length(y, len(f), "a margin")
    if f.ndim == 1:
        return refuse_signs(y, "a margin of one logit") * f
    if not _tree.is_traced(y):
        check_classes(np.asarray(y), f.shape[1], "a margin of several logits")
    elif not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"y must hold integer class labels for a margin of several logits, but has {y.dtype}."
        )
    else:
        y = refuse(
            jnp.any((y < 0) | (y >= f.shape[1])),
            y,
            f"y must hold labels from 0 to {f.shape[1] - 1} for a margin of {f.shape[1]} logits; relabel y.",
        )
    own = jax.nn.one_hot(y, f.shape[1], dtype=bool)
    return jnp.where(own, jnp.inf, jnp.take_along_axis(f, y[:, None], axis=1) - f)


def _smallest(model: Callable, data: Data, smooth: bool) -> Float[Array, ""]:
    q = pairwise(model, data)
    return -jax.nn.logsumexp(-q) if smooth else jnp.min(q)
