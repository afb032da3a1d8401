"""Where a clock is on a path: log t, how fast it grows, the course of the loss, and what is recorded."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from gflow import _tree
from gflow._problem import Problem
from gflow.clocks._clocks import AbstractClock
from gflow.clocks._log_time import Course, course, log_elapsed
from gflow.clocks._logarithm import has_tail, height
from gflow.flows import AbstractFlow


class Mark(NamedTuple):
    """A place on a path as a clock sees it."""

    log_t: Float[Array, ""]
    log_rate: Float[Array, ""]
    slope: Float[Array, ""]  # of log_rate, in the clock's variable
    course: Course  # of log_rate over the step that led here
    error: Float[Array, ""]  # an estimate of that of log_t over this step
    descent: "Descent | None"  # where log L is known
    holds: Bool[Array, ""]  # whether the clock has been right up to here


class Descent(NamedTuple):
    """The course of the loss."""

    log_loss: Float[Array, ""]
    lowest: Float[Array, ""]  # so far
    steepness: Float[Array, ""]  # ‖∇ log L‖
    steepest: Float[Array, ""]  # so far


def start(clock: AbstractClock, flow: AbstractFlow, problem: Problem, log_t: Array) -> Mark:
    """The mark at the problem's own parameters, at a given time."""
    log_rate, slope = _rate(clock, flow, problem, problem.params)
    descent = None
    if has_tail(problem):
        log_loss, steepness = height(problem, problem.params)
        descent = Descent(log_loss, log_loss, steepness, steepness)
    nothing = course(jnp.zeros_like(log_rate), None, (log_rate, slope), (log_rate, slope))
    return Mark(log_t, log_rate, slope, nothing, jnp.zeros_like(log_rate), descent, jnp.array(True))


def advance(
    clock: AbstractClock,
    flow: AbstractFlow,
    problem: Problem,
    before: Mark,
    step: Array,
    params: PyTree[Array],
) -> Mark:
    """The mark after a `step` of the clock: one gradient, and one product if the clock `curves`.

    log t goes on by the integral of the rate over the step, by way of its values and slopes at both ends and
    at the start of the step before. What these add to the two ends alone is the estimate of the error.
    """
    log_rate, slope = _rate(clock, flow, problem, params)
    last = before.course
    earlier = (last.step, last.start, last.slope / jnp.where(last.step > 0, last.step, 1))
    rate = course(step, earlier, (before.log_rate, before.slope), (log_rate, slope))
    log_t = log_time(before, rate, jnp.ones_like(step))
    error = log_t - log_time(before, rate._replace(bend=0 * step, twist=0 * step), jnp.ones_like(step))
    holds, descent = before.holds & jnp.isfinite(log_rate), before.descent
    if descent is not None:
        log_loss, steepness = height(problem, params)
        holds &= ~is_blurred(log_loss, log_loss.dtype)
        if flow.descends:  # up to the error of the solver where the flow is at rest, and rounding
            allowed = 1e-2 + 100 * float(jnp.finfo(log_loss.dtype).eps) * jnp.abs(descent.lowest)
            holds &= log_loss <= descent.lowest + allowed
        lowest = jnp.minimum(descent.lowest, log_loss)
        descent = Descent(log_loss, lowest, steepness, jnp.maximum(descent.steepest, steepness))
    return Mark(log_t, log_rate, slope, rate, error, descent, holds)


def is_blurred(log_loss: Array | float, dtype: np.dtype) -> Bool[Array, ""] | bool:
    """Whether margins of that size can't be told apart to a tenth or better."""
    return abs(log_loss) * float(jnp.finfo(dtype).eps) > 0.1


def log_time(before: Mark, rate: Course, until: Array) -> Float[Array, ""]:
    """log t at a share of a step."""
    return jnp.logaddexp(before.log_t, log_elapsed(rate, until))


def quantities(problem: Problem, params: PyTree[Array]) -> dict[str, Array]:
    """Loss and gradient norm, by way of log L where that is possible: one gradient."""
    if not has_tail(problem):
        loss, gradient = problem.value_and_gradient(params)
        return {"loss": loss, "gradient_norm": _tree.norm(gradient)}
    log_loss, steepness = height(problem, params)
    loss = jnp.exp(log_loss)
    return {"loss": loss, "gradient_norm": loss * steepness, "log_loss": log_loss}


def recorded(problem: Problem) -> tuple[str, ...]:
    """The names of what every record holds in a clock other than plain time."""
    return ("loss", "gradient_norm", *["log_loss"] * has_tail(problem), "log_t")


def halts(problem: Problem, mark: Mark) -> bool:
    """Whether the loss has stopped to fall although some example is on the wrong side."""
    if mark.descent is None:
        return False
    wrong = float(mark.descent.log_loss) > np.log(np.log(2) / problem.examples)
    return bool(wrong and mark.descent.steepness <= 0.1 * mark.descent.steepest)


def _rate(clock: AbstractClock, flow: AbstractFlow, problem: Problem, params: PyTree) -> tuple[Array, Array]:
    """log dt/ds and its derivative along the path."""
    _, field = clock.pace(flow, problem, params)
    return jax.jvp(lambda p: clock.pace(flow, problem, p).log_rate, (params,), (field,))
