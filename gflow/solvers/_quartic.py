"""Dense output through five values of a step."""

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from . import _linalg as la
from ._linalg import Scalar, Vector

WITHIN = (0.25, 0.5, 0.75)  # of the step, where the solution is known beside the ends
_NODES = (0.0, *WITHIN, 1.0)
_BENT = 0.1  # of the fourth difference counts as error, which keeps dense output within the tolerance


class QuarticInterpolation(dfx.AbstractLocalInterpolation):
    """The polynomial of degree four through five values, evenly spaced.

    It needs no slopes, which stiff directions make large even where they have died out to within the
    tolerance, and wrong by as much.
    """

    t0: Scalar
    t1: Scalar
    y0: Vector
    y1: Vector
    within: Vector  # leading axis: at `WITHIN`, relative to y0

    def evaluate(self, t0, t1=None, left=True):
        """The value at `t0`, or its increment from `t0` to `t1`."""
        del left
        if t1 is not None:
            return la.sub(self.evaluate(t1), self.evaluate(t0))
        span = self.t1 - self.t0
        share = (t0 - self.t0) / jnp.where(span == 0, 1, span)
        *inner, last = (_weight(share, node) for node in _NODES[1:])

        def at(y0, within, y1):  # in increments, so that what rests stays as it is, to the last bit
            change = jnp.tensordot(jnp.stack(inner).astype(y0.dtype), within, axes=1)
            return y0 + change + last.astype(y0.dtype) * (y1 - y0)

        return jtu.tree_map(at, self.y0, self.within, self.y1)


def with_bend(error: Array, values: Array) -> Array:
    """An error estimate in which the fourth difference of five values counts, entry by entry.

    The values are evenly spaced, and the last four of them come relative to the first. For what decays,
    however fast, the quartic is at most wrong by their fourth difference, and the less the slower the decay:
    by a fifteenth of it where that is exp(-6) over the step, and by a hundredth for exp(-1).
    """
    bend = _BENT * (values[3] - 4 * (values[0] + values[2]) + 6 * values[1])
    return jnp.where(jnp.abs(bend) > jnp.abs(error), bend, error)


def _weight(share, node):
    """Lagrange's polynomial of a node."""
    weight = jnp.ones_like(share)
    for other in _NODES:
        if other != node:
            weight *= (share - other) / (node - other)
    return weight
