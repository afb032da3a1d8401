"""The spectral radius of the Jacobian along a trajectory, for a few gradients.

A stabilised method has to know how stiff the problem is *before* it takes a step: it picks its
number of stages from a bound on the spectral radius. The stages of a stable step can't supply
it, since damping the stiff end is exactly what they do. What they can do is raise the alarm: as
soon as an eigenvalue leaves the stability interval its mode fills the stages and the ratio
`‖ΔF‖ / ‖ΔY‖` of consecutive stages jumps to that eigenvalue, with `ΔF` as its eigenvector.

So: one step of power iteration (one gradient, by difference) every few accepted steps, started
from the last direction; growth extrapolated to the end of the coming step; and the alarm.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from . import _linalg as la
from ._linalg import Scalar, Vector

# Factor by which the bound exceeds the power iteration's value, which is a lower bound.
SAFETY = 1.2
# Largest extrapolated growth of the logarithm over a step: beyond it the trend is not believed.
MAX_TREND = 0.7
# Evaluations per step below which probes become rarer, so that they stay a small share.
SPENT = 3


class Radius(eqx.Module):
    """An estimate of the spectral radius and the direction that it was found with."""

    direction: Vector  # unit vector
    value: Scalar  # ‖J v‖, a lower bound of the radius
    slope: Scalar  # d(log value)/dt of the last two probes
    time: Scalar  # when `value` was found
    step: Scalar  # size of the last accepted step
    age: Int[Array, ""]  # accepted steps since the last probe
    spent: Int[Array, ""]  # evaluations since the last probe

    def due(self, every: int):
        """Whether to probe: every so many steps, and when they cost enough for it to matter."""
        return (self.age >= every) & (self.spent >= SPENT * every)

    def bound(self, t) -> Scalar:
        """What the stages are chosen for: value, trend to the end of the step, safety."""
        elapsed = jnp.abs(t - self.time) + self.step
        trend = jnp.clip(jnp.maximum(self.slope, 0) * elapsed, max=MAX_TREND)
        return SAFETY * self.value * jnp.exp(trend)

    def probed(self, t, ratio, direction) -> "Radius":
        """After one step of power iteration at time `t`."""
        elapsed = jnp.abs(t - self.time)
        known = (elapsed > 0) & (ratio > 0) & (self.value > 0)
        growth = jnp.log(jnp.where(known, ratio / jnp.where(known, self.value, 1), 1))
        slope = jnp.where(known, growth / jnp.where(known, elapsed, 1), 0)
        none = jnp.zeros_like(self.age)
        return Radius(direction, ratio, slope, t, self.step, none, none)

    def unprobed(self) -> "Radius":
        """After a probe that found nothing."""
        none = jnp.zeros_like(self.age)
        return eqx.tree_at(lambda r: (r.age, r.spent), self, (none, none))

    def alarmed(self, t, ratio, direction, most) -> "Radius":
        """After a ratio between stages that exceeds the value; `most` limits the jump."""
        up = ratio > self.value
        value = jnp.where(up, jnp.minimum(ratio, most * self.value), self.value)
        # A value of zero (start at a flat point) can't be multiplied up.
        value = jnp.where(up & (self.value == 0), ratio, value)
        found = (la.select(up, direction, self.direction), value, jnp.where(up, t, self.time))
        return eqx.tree_at(lambda r: (r.direction, r.value, r.time), self, found)

    def advanced(self, step, evaluations) -> "Radius":
        """After a completed step."""
        made = (jnp.abs(step), self.age + 1, self.spent + evaluations)
        return eqx.tree_at(lambda r: (r.step, r.age, r.spent), self, made)


def start_direction(f0: Vector) -> Vector:
    """The gradient, which is rich in stiff directions early on, plus some of everything."""
    length = la.norm(f0)
    unit = la.scale(jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0), f0)
    v = la.axpy(0.1 * 3**0.5 / max(la.size(f0), 1) ** 0.5, la.noise(f0), unit)
    return la.scale(1 / la.norm(v), v)


def unit_or(x: Vector, length: Scalar, otherwise: Vector) -> Vector:
    """`x / length`, or `otherwise` where that is not a direction."""
    good = (length > 0) & jnp.isfinite(length)
    return la.select(good, la.scale(1 / jnp.where(good, length, 1), x), otherwise)
