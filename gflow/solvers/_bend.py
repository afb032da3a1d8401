"""What the past of a solution foretells of the next step, extrapolated in logarithmic time.

A solution that relaxes on ever longer time scales has derivatives in t that are large beside what it does,
and steps that grow in proportion to the time that has passed. In s = log(1 + ρx)/ρ, where x counts steps
from the present and ρ is the growth from one step to the next, past values are evenly spaced, and the
solution bends little. A polynomial in s also has small weights where one in x amplifies errors of the past:
the recursion is stable for steps that grow by three tenths each (`benchmarks/_rkc_stability.py`).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _linalg as la
from ._linalg import Scalar, Vector

# Bound on the sum of weights of the past in the third derivative of q: with more, its errors may grow.
_MOST_WEIGHT = 24.0
_LONG = 16  # steps over which their growth is averaged, because a jitter of s costs accuracy
_SUDDEN = 0.3  # change of ln h beyond which it tells of a rejection, not of the time scale
_STEADY = 1e-4  # growth below which s is x to rounding


class Bend(eqx.Module):
    """The foretold course `q(c) = Σ_k (s(c)^k - δ_k1 c) terms_k` without its value and slope at the start.

    `c` is the step's fraction. The method integrates `u = y - q`, `u' = f(t, u + q) - q'`. Empty for a method
    without memory.
    """

    terms: tuple[Vector, ...] = ()
    growth: Scalar | float = 0.0

    def at(self, c, point: Vector) -> Vector:
        """`point + q(c)`"""
        if self.terms:
            s, _, _ = _stretched(self.growth, c)
            for k, term in enumerate(self.terms, 1):
                point = la.axpy(s**k - (c if k == 1 else 0), term, point)
        return point

    def rate(self, c, slope: Vector) -> Vector:
        """`slope - q'(c)`"""
        if self.terms:
            s, ds, _ = _stretched(self.growth, c)
            for k, term in enumerate(self.terms, 1):
                slope = la.axpy((1 if k == 1 else 0) - k * s ** (k - 1) * ds, term, slope)
        return slope


def extrapolated(h, y0: Vector, past: tuple[Vector, ...], ages: Float[Array, "3"], growth, ready) -> Bend:
    """What `y0` and the three values of its `past` foretell of a step `h`.

    `ages` say how long ago they were, newest first, and `growth` is the logarithm of the growth of the steps.
    Unless all are known (`ready`), nothing is foretold.
    """
    unit = jnp.where(ready, jnp.asarray(h, ages.dtype), 1)
    # Placeholders keep the weights finite until the memory is filled, and for a member of a batch that has
    # arrived and makes empty steps.
    x = jnp.where(ready, -ages / unit, -jnp.arange(1.0, 4.0).astype(ages.dtype)).astype(la.real_dtype(y0))
    growth = jnp.clip(jnp.expm1(growth), _STEADY, 0.9 / -x[-1]).astype(x.dtype)
    growth = jax.lax.stop_gradient(growth)
    nodes, _, _ = _stretched(growth, x)
    weights = _lagrange(nodes)
    thirds = jnp.stack([_third(growth, c) @ weights for c in (0.0, 1.0)])
    weight = jnp.max(jnp.sum(jnp.abs(thirds), axis=1) + jnp.abs(jnp.sum(thirds, axis=1)))
    share = jnp.where(ready & (weight > 0), jnp.minimum(1, _MOST_WEIGHT / weight), 0)
    weights = jax.lax.stop_gradient(share) * weights
    offsets = [la.sub(y, y0) for y in past]
    terms = []
    for row in weights:
        term = la.scale(row[0], offsets[0])
        for w, offset in zip(row[1:], offsets[1:], strict=True):
            term = la.axpy(w, offset, term)
        terms.append(term)
    return Bend(tuple(terms), growth)


def grown(growth, step, before, count) -> Scalar:
    """The smoothed logarithm of the growth of the steps, after one more `step` and the `count` before it.

    The last of these is `before`; the changes from one to the next are mostly chance.
    """
    known = (step > 0) & (before > 0)
    change = jnp.log(jnp.where(known, step, 1) / jnp.where(known, before, 1)).astype(growth.dtype)
    among = jnp.minimum(count + 1, _LONG).astype(growth.dtype)
    after = growth + (jnp.clip(change, -_SUDDEN, _SUDDEN) - growth) / among
    return jax.lax.stop_gradient(jnp.where(known, after, growth))


def _stretched(growth, x):
    """`s = log(1 + ρx)/ρ` and its first two derivatives."""
    slope = 1 / (1 + growth * x)
    return jnp.log1p(growth * x) / growth, slope, -growth * slope**2


def _lagrange(nodes: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Row k - 1: the weights of the values at the nodes in the coefficient of s^k, given 0 at s = 0."""
    a, b = jnp.roll(nodes, 1), jnp.roll(nodes, 2)
    return jnp.stack([a * b, -(a + b), jnp.ones_like(a)]) / (nodes * (nodes - a) * (nodes - b))


def _third(growth, c: float) -> Float[Array, "3"]:
    """The third derivatives of s, s² and s³ at `c`."""
    s, d, dd = _stretched(growth, c)
    ddd = 2 * growth**2 * d**3
    return jnp.stack([ddd, 6 * d * dd + 2 * s * ddd, 6 * d**3 + 18 * s * d * dd + 3 * s**2 * ddd])
