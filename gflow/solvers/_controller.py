"""A step size controller for smooth flows whose stiffness and speed change steadily."""

from collections.abc import Callable

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, Bool, PyTree

from . import _linalg as la
from ._linalg import Scalar

# A step that a solver refuses is tried with half its length, and then, because what it may be changes slowly,
# the next ones with little more than that until they have grown.
_HALF, _LEFT, _GROWTH = 0.5, 0.7, 1.07


class _PredictiveState(eqx.Module):
    step: Scalar  # the last accepted step
    error: Scalar  # its scaled error
    known: Bool[Array, ""]
    longest: Scalar  # that the next one may be
    ceiling: Scalar  # the step refused last
    refused: Bool[Array, ""]  # the last attempt


class Predictive(dfx.AbstractAdaptiveStepSizeController):
    r"""Gustafsson's predictive controller.

    With $e$ the root mean square of the error estimate over `atol` $+$ `rtol` $|y|$, entry by entry, and
    $k$ the order of the estimate, a step $h$ is kept if $e \le 1$, and the next one is

    $$h\,\sigma \min\Bigl(e^{-1/k},\ \frac{h}{h_{-}}\Bigl(\frac{e_{-}}{e^2}\Bigr)^{1/k}\Bigr) .$$

    Unlike with `diffrax.PIDController`'s defaults a step may become smaller after a step that was kept:
    where the error grows steadily, out of a saddle for instance, most rejections vanish. A step is at most
    `factormax` times as long as the one before; only the second one may be up to `factorfirst` times as long
    as the first, whose length is a guess. After a step whose error is infinite, because the solver refused it
    or the field is not defined there, steps grow by a few per cent until they are as long as it was.

    ??? cite "Reference"

        Gustafsson: Control-theoretic techniques for stepsize selection in implicit Runge-Kutta
        methods. ACM Transactions on Mathematical Software 20 (1994) 496-517.
    """

    rtol: Scalar | float
    atol: Scalar | float
    safety: float = 0.85
    factormin: float = 0.1
    factormax: float = 5.0
    factorfirst: float = 1000.0
    norm: Callable[[PyTree], Scalar] = optx.rms_norm

    def wrap(self, direction):
        """Itself: diffrax turns the time round where it runs backwards."""
        del direction
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """The end of the first step: `dt0`, or from the speed at the start (one evaluation)."""
        dtype = la.real_dtype(y0)
        if dt0 is None:
            if error_order is None:
                raise ValueError(
                    "dt0 must be given for a solver whose error estimate has no order, but is None; pass the "
                    "first step."
                )
            speed = la.norm(jax.lax.stop_gradient(func(terms, t0, y0, args)))
            # For a start at zero, a size below which errors hardly count.
            least = 0.1 * self.atol / self.rtol * la.size(y0) ** 0.5
            scale = jnp.maximum(la.norm(la.stop_gradient(y0)), least)
            # Near half of the time that the state takes to change by itself, and less if that is too long for
            # the tolerance. Of seven networks each had its right step between 0.47 and 0.94 of that time.
            moving = speed > 0
            dt0 = 0.45 * scale * self.rtol ** (1 / error_order) / jnp.where(moving, speed, 1)
            left = t1 - t0
            resting = jnp.where(jnp.isfinite(left), 1e-3 * left, 1)
            dt0 = jnp.where(moving, jnp.minimum(dt0, left), resting)
        zero = jnp.zeros((), dtype)
        no = jnp.asarray(False)
        endless = jnp.full_like(zero, jnp.inf)
        return t0 + dt0, _PredictiveState(zero, zero, no, endless, endless, no)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        """Keeps or rejects the step from `t0` to `t1`, and says how long the next one is."""
        del args
        state: _PredictiveState = controller_state
        if y_error is None:
            raise RuntimeError(
                "controller=Predictive needs a solver with an error estimate, but this one makes none; use "
                "diffrax.ConstantStepSize() with dt0."
            )
        y0, y1, y_error = la.stop_gradient((y0, y1_candidate, y_error))
        y1 = jtu.tree_map(lambda a, b: jnp.where(jnp.isfinite(a), a, b), y1, y0)
        scaled = jtu.tree_map(
            lambda a, b, d: d / (self.atol + self.rtol * jnp.maximum(jnp.abs(a), jnp.abs(b))), y0, y1, y_error
        )
        e = self.norm(scaled).astype(la.real_dtype(y0))
        e = jnp.where(jnp.isnan(e), jnp.inf, e)
        keep = e <= 1
        step = jnp.asarray(t1 - t0)
        bounded = jnp.clip(e, 1e-10, 1e10)
        factor = bounded ** (-1 / error_order)
        ratio = step / jnp.where(state.known, state.step, step)
        before = jnp.where(state.known, state.error, 1)
        predicted = ratio * (before / bounded**2) ** (1 / error_order)
        factor = jnp.where(state.known & keep, jnp.minimum(factor, predicted), factor)
        grown = jnp.where(state.known, self.factormax, self.factorfirst)
        most = jnp.where(keep, grown, self.safety)
        factor = jnp.clip(self.safety * factor, self.factormin, most)
        refused = ~jnp.isfinite(e)
        factor = jnp.where(refused & ~state.refused, _HALF, factor).astype(step.dtype)
        longest = state.longest * jnp.where(keep, jnp.where(step < state.ceiling, _GROWTH, jnp.inf), 1)
        longest = jnp.where(refused, _LEFT * step, longest).astype(state.longest.dtype)
        after = _PredictiveState(
            step=jnp.where(keep, step, state.step).astype(state.step.dtype),
            error=jnp.where(keep, bounded, state.error).astype(state.error.dtype),
            known=state.known | keep,
            longest=longest,
            ceiling=jnp.where(refused, step, state.ceiling).astype(state.ceiling.dtype),
            refused=refused,
        )
        start = jnp.where(keep, t1, t0)
        next_step = jax.lax.stop_gradient(jnp.minimum(step * factor, longest.astype(step.dtype)))
        return keep, start, start + next_step, False, after, dfx.RESULTS.successful
