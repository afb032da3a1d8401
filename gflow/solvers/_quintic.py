"""Dense output through six values of a step."""

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from . import _linalg as la
from ._linalg import Scalar, Vector

WITHIN = (0.1, 0.25, 0.5, 0.75)  # of the step, where the solution is known beside the ends
_CHECK, *_OTHERS = WITHIN


class QuinticInterpolation(dfx.AbstractLocalInterpolation):
    """The polynomial of degree five through the values at both ends and at `WITHIN`.

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
        *inner, last = _weights((*WITHIN, 1.0), share)

        def at(y0, within, y1):  # in increments, so that what rests stays as it is, to the last bit
            change = jnp.tensordot(jnp.stack(inner).astype(y0.dtype), within, axes=1)
            return y0 + change + last.astype(y0.dtype) * (y1 - y0)

        return jtu.tree_map(at, self.y0, self.within, self.y1)


def with_bend(error: Array, values: Array) -> Array:
    """An error estimate in which that of dense output counts, entry by entry.

    The values, at `WITHIN` and the end, come relative to the start. What the quartic through the others
    misses at the first counts. Where something decays by up to exp(-50) in the step the quintic misses it by
    less than that, wherever; what decays faster, by up to 2.7 times as much.
    """
    first, *others = values
    guess = sum(w * value for w, value in zip(_weights((*_OTHERS, 1.0), _CHECK), others, strict=True))
    bend = first - guess
    return jnp.where(jnp.abs(bend) > jnp.abs(error), bend, error)


def _weights(nodes, share):
    """Lagrange's polynomials of these nodes beside zero, at `share`."""
    weights = []
    for node in nodes:
        weight = share / node
        for other in nodes:
            if other != node:
                weight *= (share - other) / (node - other)
        weights.append(weight)
    return weights
