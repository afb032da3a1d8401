"""Linear regions of a network along a line."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gflow.bias._homogeneity import Inputs, outputs, refuse


def linear_regions(model: Callable, points: Inputs, width: float, *, share: float = 0.01) -> Int[Array, ""]:
    """How many linear pieces f has along a straight line: 1 + the number of its kinks, merged.

    A wide network has as many kinks as neurons, but neurons that learn the same put them in the same place.
    Kinks within `width` of each other count as one, and only if their changes of slope sum up to more than a
    `share` of the total variation of the slope, Σ|Δf'|.

    **Arguments:**

    - `points`: evenly spaced along the line, much closer together than `width`.
    - `width`: in units of the inputs, the Euclidean distance between places on the line.
    - `share`: between 0 and 1.

    **Raises:** `ValueError` for fewer than three points, points that are not evenly spaced along a line, and
    a function that is NaN or infinite on them.

    ??? cite "Reference"

        I. Safran, G. Vardi and J. D. Lee. On the Effective Number of Linear Regions in Shallow Univariate
        ReLU Networks. NeurIPS 2022. [arXiv:2205.09072](https://arxiv.org/abs/2205.09072)
    """
    points = jnp.asarray(points)
    if points.ndim != 2 or len(points) < 3:
        raise ValueError(
            f"points must be at least three inputs, shape (n, d), but their shape is {points.shape}."
        )
    spacing = jnp.linalg.norm(points[-1] - points[0]) / (len(points) - 1)
    straight = jnp.linspace(points[0], points[-1], len(points))
    points = refuse(
        ~(jnp.max(jnp.abs(points - straight)) <= 0.1 * spacing),
        points,
        "points must be evenly spaced along a straight line, but are not; make them with jnp.linspace.",
    )
    f = outputs(model, points)
    f = refuse(~jnp.all(jnp.isfinite(f)), f, "model must be finite on all points, but is not.")
    turns = jnp.abs(jnp.diff(f, n=2)) / spacing
    # a linear function bends by rounding errors only
    total = jnp.sum(turns)
    noise = 16 * jnp.finfo(f.dtype).eps * jnp.max(jnp.abs(f)) / spacing
    turns = jnp.where(turns > noise, turns, 0)
    places = spacing * jnp.arange(len(turns))

    def gather(kinks, turn_and_place):
        count, start, mass = kinks
        turn, place = turn_and_place
        fresh = (turn > 0) & (place > start + width)
        count = count + (fresh & (mass > share * total))
        return (count, jnp.where(fresh, place, start), jnp.where(fresh, turn, mass + turn)), None

    none = (jnp.array(0), jnp.array(-jnp.inf, f.dtype), jnp.zeros((), f.dtype))
    (count, _, mass), _ = jax.lax.scan(gather, none, (turns, places))
    return 1 + count + ((mass > share * total) & (mass > 0))
