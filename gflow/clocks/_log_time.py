"""The time that passes over a step, from log dt/ds at its ends; nothing overflows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Course(NamedTuple):
    """A log rate r over a step, as a polynomial of x = 0 … 1.

    The cubic of its values and slopes at both ends, plus x² (1 − x)² (bend + twist · x), which vanishes
    there.
    """

    step: Float[Array, ""]
    start: Float[Array, ""]
    end: Float[Array, ""]
    slope: Float[Array, ""]  # dr/dx at the start
    slope_end: Float[Array, ""]
    bend: Float[Array, ""]
    twist: Float[Array, ""]

    def __call__(self, x: Array) -> Array:
        """r(x)."""
        rise, bump = self.end - self.start, x * (1 - x)
        cubic = (self.slope - rise) * (1 - x) + (rise - self.slope_end) * x
        return self.start + x * rise + bump * (cubic + bump * (self.bend + self.twist * x))


def course(step: Array, before: tuple[Array, ...] | None, start: tuple, end: tuple) -> Course:
    """The course from the rates and slopes at the ends of a step, and those at the start of the one `before`.

    That one is given with its length, or a length of 0 if there was none.
    """
    zero = jnp.zeros_like(step)
    cubic = Course(step, start[0], end[0], step * start[1], step * end[1], zero, zero)
    if before is None:
        return cubic
    length, rate, slope = before
    known = length > 0
    x = -jnp.where(known, length / step, 1)
    value, gradient = jax.jvp(cubic, (x,), (jnp.ones_like(x),))
    bump, bump_slope = (x * (1 - x)) ** 2, 2 * x * (1 - x) * (1 - 2 * x)
    height = (rate - value) / bump  # bend + twist x
    twist = (step * slope - gradient - bump_slope * height) / bump
    bend = height - twist * x
    return cubic._replace(bend=jnp.where(known, bend, 0), twist=jnp.where(known, twist, 0))


# The integral of a rate over a step is concentrated at the end where the rate is larger, within the
# inverse of its logarithm's slope. So the nodes are those of Gauss in z with y = δ (eᶻ − 1) the distance
# from that end as a share of the step, δ that inverse: equally good for slopes of 0 and of a million.
_PANELS = 10
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_SHARES = ((np.arange(_PANELS)[:, None] + (_NODES + 1) / 2) / _PANELS).ravel()
_SHARE_WEIGHTS = np.tile(_WEIGHTS / (2 * _PANELS), _PANELS)


def log_elapsed(rate: Course, until: Array) -> Float[Array, ""]:
    """log ∫ eʳ ds over the part of a step up to x = `until`."""
    one = jnp.ones_like(until)
    (start, slope), (end, slope_end) = (jax.jvp(rate, (x,), (one,)) for x in (0 * until, until))
    steepness = until * jnp.maximum(jnp.abs(slope), jnp.abs(slope_end))
    delta = 1 / jnp.maximum(jnp.maximum(steepness, jnp.abs(end - start)), 1)
    length = jnp.log1p(1 / delta)
    z = length * _SHARES.astype(start.dtype)
    y = delta * jnp.expm1(z)
    exponents = z + rate(until * jnp.where(start > end, y, 1 - y))
    weights = _SHARE_WEIGHTS.astype(start.dtype)
    return jnp.log(rate.step * until * delta * length) + jax.nn.logsumexp(exponents, b=weights)
