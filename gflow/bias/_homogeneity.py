"""Homogeneity in the parameters, f(x; cθ) = cᴰ f(x; θ), without which a margin has no meaning."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from gflow import _tree
from gflow.losses import check_signs

Inputs = Float[Array, "n ..."] | Float[np.ndarray, "n ..."]
Labels = Shaped[Array, " n"] | Shaped[np.ndarray, " n"]
Data = tuple[PyTree, Labels]


def homogeneity_degree(
    model: Callable | PyTree, x: PyTree, *, trainable: PyTree | Callable[[Any], bool] | None = None
) -> Float[Array, ""]:
    """The degree D of homogeneity of a model: f(x; cθ) = cᴰ f(x; θ) for all c > 0.

    Found by evaluating f at c = 2 and c = 4, on all examples `x`, both at the parameters θ of the model and
    at parameters nearby: biases that happen to be 0 are noticed. A linear model has D = 1, a ReLU network
    without biases as many as it has layers. (Biases of the first layer do no harm, as weights of a constant
    input; those of later layers do.)

    **Arguments:** `trainable` selects the parameters θ as in [`gflow.Problem`][].

    **Raises:** `ValueError` if the model is not homogeneous, or vanishes on all of `x`. In compiled code
    (in an observable of a run) the error arises when it runs, and ends the run with status "error".

    ??? cite "Reference"

        K. Lyu and J. Li. Gradient Descent Maximizes the Margin of Homogeneous Neural Networks. ICLR 2020.
        [arXiv:1906.05890](https://arxiv.org/abs/1906.05890)
    """
    params, frozen = _tree.partition(model, trainable)

    def scaled(params: PyTree, c: float) -> Array:
        return outputs(eqx.combine(jtu.tree_map(lambda leaf: c * leaf, params), frozen), x)

    def ratio_and_error(params: PyTree) -> tuple[Array, Array]:
        # powers of two scale without rounding
        f1, f2, f4 = (scaled(params, c) for c in (1.0, 2.0, 4.0))
        size = jnp.sum(f1 * f1)
        ratio = jnp.sum(f1 * f2) / jnp.where(size > 0, size, jnp.nan)
        error = jnp.maximum(
            jnp.max(jnp.abs(f2 - ratio * f1)) / jnp.max(jnp.abs(f2)),
            jnp.max(jnp.abs(f4 - ratio**2 * f1)) / jnp.max(jnp.abs(f4)),
        )
        return ratio, error

    ratio, error = ratio_and_error(params)
    ratio_nearby, error_nearby = ratio_and_error(_nearby(params))
    error = jnp.maximum(jnp.maximum(error, error_nearby), jnp.abs(ratio_nearby / ratio - 1))
    tolerance = jnp.sqrt(jnp.finfo(error.dtype).eps)
    return refuse(
        ~((error <= tolerance) & (ratio > 0)),
        jnp.log2(ratio),
        "model must be homogeneous in its trainable parameters, f(cθ) = c^D f(θ), for a margin in parameter "
        "space, but is not (biases after the first layer, skip "
        "connections and smooth activations break it), or vanishes on all examples; leave "
        "margins and KKT residuals out for this model.",
    )


def outputs(model: Callable, x: PyTree) -> Float[Array, "n ..."]:
    """f(xᵢ) for every example, without TF32 or bfloat16 products."""
    with jax.default_matmul_precision("highest"):
        return jax.vmap(model)(jtu.tree_map(jnp.asarray, x))


def refuse(condition: Bool[Array, ""], value: PyTree, message: str) -> Any:
    """`value`, unless `condition` holds: then an error, in compiled code when it runs."""
    if _tree.is_traced(condition):
        return eqx.error_if(value, condition, message)
    if condition:
        raise ValueError(message)
    return value


def as_floats(x: Inputs) -> Array:
    """The inputs, of which integers can't be differentiated by or moved a little, as floats."""
    x = jnp.asarray(x)
    return x.astype(jnp.result_type(x, float)) if jnp.issubdtype(x.dtype, jnp.integer) else x


def check_length(y: Labels, examples: int, what: str) -> None:
    """Raises `ValueError` unless `y` has one entry for each of the examples, and there are some."""
    if y.shape != (examples,) or not examples:
        raise ValueError(
            f"y must hold one label for each of the {examples} examples for {what}, and at least one, but "
            f"has shape {y.shape}."
        )


def refuse_signs(y: Labels, what: str) -> Array:
    """The labels `y`, refused unless all are ±1; `what` needs them."""
    if not _tree.is_traced(y):
        check_signs(np.asarray(y), what)
        return jnp.asarray(y)
    message = f"y must hold the labels +1 and -1 for {what}, but holds others; map the two classes to ±1."
    return refuse(jnp.any(jnp.abs(y) != 1), y, message)


def _nearby(params: PyTree) -> PyTree:
    """Parameters a tenth of their root mean square away, in a direction without pattern."""
    leaves, structure = jtu.tree_flatten(params)
    scale = 0.1 * _tree.norm(params) / jnp.sqrt(sum(leaf.size for leaf in leaves))
    first, shifted = 1, []
    for leaf in leaves:
        index = jnp.arange(first, first + leaf.size, dtype=leaf.dtype)
        shifted.append(leaf + scale * jnp.cos(index**2).reshape(leaf.shape))
        first += leaf.size
    return jtu.tree_unflatten(structure, shifted)
