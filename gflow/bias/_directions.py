"""Directions: where a predictor goes when its norm grows without bound, and which of the inputs fools it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gflow import _tree
from gflow.bias._homogeneity import Data, as_floats, check_length, outputs, refuse, refuse_signs


def direction_distance(a: PyTree[Array], b: PyTree[Array]) -> Float[Array, ""]:
    """‖a/‖a‖ − b/‖b‖‖₂, which keeps the digits near 0 that an angle from arccos would lose."""
    unit = lambda v: jax.tree.map(lambda leaf: leaf / _tree.norm(v), v)
    return _tree.norm(_tree.subtract(unit(a), unit(b)))


def increment_direction(earlier: PyTree[Array], later: PyTree[Array]) -> PyTree[Array]:
    """Estimator of the limit direction, (w₂ − w₁)/‖w₂ − w₁‖ of a linear predictor at two late times.

    In log-loss time w(τ) = c τ ŵ + w̃ + o(1), so that w/‖w‖ reaches ŵ only like 1/τ: the increment is rid of
    w̃ and converges exponentially, unless a support vector has a multiplier of zero.
    """
    increment = _tree.subtract(later, earlier)
    size = _tree.norm(increment)
    return jax.tree.map(lambda leaf: leaf / size, increment)


def universal_direction(data: Data) -> Float[Array, " d"]:
    """The direction Σᵢ yᵢ xᵢ, normalised: on nearly orthogonal data small moves along it flip every example.

    **Raises:** `ValueError` for labels other than ±1.

    ??? cite "Reference"

        G. Vardi, G. Yehudai and O. Shamir. Gradient Methods Provably Converge to Non-Robust Networks.
        NeurIPS 2022. [arXiv:2202.04347](https://arxiv.org/abs/2202.04347)
    """
    x, y = _signed(data, "universal_direction")
    direction = jnp.tensordot(y, x, axes=1, precision="highest")
    return direction / jnp.linalg.norm(direction)


def flip_radii(
    model: Callable,
    data: Data,
    direction: Float[Array, " d"],
    largest: float,
    *,
    points: int = 600,
) -> Float[Array, " n"]:
    """The smallest r at which f(xᵢ − yᵢ r z) has no longer the sign yᵢ, z the direction; ∞ beyond `largest`.

    The first sign change on a grid of so many `points` is refined by bisection. An example that is
    misclassified at once has r = 0; where f is NaN, so is r.

    **Raises:** `ValueError` for labels other than ±1, and for a direction of length 0.
    """
    x, y = _signed(data, "flip_radii")
    length = jnp.linalg.norm(direction)
    z = direction / refuse(
        ~(length > 0), length, "direction must not be 0 or NaN; give a vector like one input."
    )

    def of_one(x, y):
        rights = lambda radii: y * outputs(model, x - y * radii[:, None] * z) > 0
        grid = jnp.linspace(0, largest, points, dtype=x.dtype)
        wrong = ~rights(grid)
        first = jnp.argmax(wrong)

        def halve(_, bounds):
            middle = (bounds[0] + bounds[1]) / 2
            right = rights(middle[None])[0]
            return jnp.where(right, middle, bounds[0]), jnp.where(right, bounds[1], middle)

        bounds = (grid[jnp.maximum(first - 1, 0)], grid[first])
        radius = jax.lax.fori_loop(0, jnp.finfo(x.dtype).nmant, halve, bounds)[1]
        at_start = y * outputs(model, x[None])[0]
        return jnp.where(jnp.isnan(at_start), jnp.nan, jnp.where(jnp.any(wrong), radius, jnp.inf))

    return jax.vmap(of_one)(x, y)


def _signed(data: Data, what: str) -> tuple[Array, Array]:
    x, y = as_floats(data[0]), refuse_signs(data[1], what)
    check_length(y, len(x), what)
    return x, y.astype(x.dtype)
