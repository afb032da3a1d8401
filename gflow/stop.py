"""Stop conditions: end a run where a recorded quantity reaches a level.

Along a flow the crossing is located on the continuous path, by root finding on the solver's dense
output; a descent stops at the first step at which the condition holds.
"""

import abc
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["AbstractStop", "Crosses", "GradientNormBelow", "LossBelow"]


def _finite(level: Any) -> float:
    try:
        number = float(level)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"level must be a finite number for a stop condition, but {level!r} came.")
    return number


class AbstractStop(eqx.Module):
    """A condition `quantity reaches level`; the subclasses say which quantity and from which side."""

    level: eqx.AbstractVar[float]

    @property
    @abc.abstractmethod
    def quantity(self) -> str:
        """The quantity: `"loss"`, `"gradient_norm"` or the name of an observable.

        Along a flow in a clock other than plain time also `"log_t"`, and `"log_loss"` with a loss that has a
        logarithm of its own.
        """

    @abc.abstractmethod
    def side(self, start: Float[Array, ""], level: Float[Array, ""]) -> Float[Array, ""]:
        """The sign (±1) of `quantity − level` while the run goes on, given where the quantity starts.

        0 says that the condition holds at the start, so that the run ends there.
        """


class LossBelow(AbstractStop):
    """Stops once the loss is at or below `level`; at once if it starts there."""

    level: float = eqx.field(converter=_finite)

    @property
    def quantity(self):
        """`"loss"`."""
        return "loss"

    def side(self, start, level):
        """+1 above the level, 0 at or below it."""
        return jnp.where(start > level, 1, 0).astype(start.dtype)


class GradientNormBelow(AbstractStop):
    """Stops once the gradient norm ‖∇L‖₂ is at or below `level`; at once if it starts there.

    A small gradient is no proof of a minimum: at a saddle it is small as well.
    """

    level: float = eqx.field(converter=_finite)

    @property
    def quantity(self):
        """`"gradient_norm"`."""
        return "gradient_norm"

    def side(self, start, level):
        """+1 above the level, 0 at or below it."""
        return jnp.where(start > level, 1, 0).astype(start.dtype)


class Crosses(AbstractStop):
    """Stops where a scalar quantity crosses `level`, from whichever side it starts.

    `name` is an observable of the run, `"loss"` or `"gradient_norm"`; along a flow in a clock other than
    plain time also `"log_t"`, and `"log_loss"` with a loss that has a logarithm of its own. A quantity that
    comes back within one step of the solver has not been seen to cross.
    """

    name: str = eqx.field(static=True)
    level: float = eqx.field(converter=_finite)

    @property
    def quantity(self):
        """`name`."""
        return self.name

    def side(self, start, level):
        """The side on which the quantity starts; a start exactly on the level counts as above."""
        return jnp.where(start >= level, 1, -1).astype(start.dtype)
