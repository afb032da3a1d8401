"""Clocks: the time variable in which a path is traversed.

A flow dθ/dt = F(θ) runs along the same path in any other variable s that increases with t. In
classification the flow reaches its limit like 1/log t, and plain time ends where eᵗ overflows; log-loss
and log-norm time pass that by, and carry log t along.
"""

import abc
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from gflow import _tree
from gflow._problem import Problem
from gflow.flows import AbstractFlow
from gflow.losses import AbstractExponentialTail, Log

__all__ = ["AbstractClock", "Arclength", "LogLoss", "LogNorm", "Pace", "Time", "TwoPhase"]


class Pace(NamedTuple):
    """How a clock moves at one place: along which `field` dθ/ds, and at which `log_rate` = log dt/ds."""

    log_rate: Float[Array, ""]
    field: PyTree[Array]


class Refused(ValueError):
    """A clock can't begin where it should."""


class AbstractClock(eqx.Module):
    """A variable s with dt/ds > 0, in which a flow dθ/dt = F(θ) becomes dθ/ds = (dt/ds) F(θ).

    **Class attributes:**

    - `symbol`: the letter of the variable, for messages.
    - `max_rtol`: the largest tolerance at which its runs have been found right; looser ones are refused.
    - `share`: the part of the tolerance that a step may use up, a twentieth because errors add up over a
        long horizon.
    - `curves`: whether the derivative of its rate takes a Hessian-vector product.
    - `failure`: why a run ends in which the clock goes wrong; `refusal`: why one can't begin.
    """

    symbol: ClassVar[str]
    max_rtol: ClassVar[float] = 1e-4
    share: ClassVar[float] = 0.05
    curves: ClassVar[bool] = True
    refusal: ClassVar[str] = ""
    failure: ClassVar[str] = (
        "the next step would raise the loss, which a flow that descends can't do: the steps have left the "
        "path; use a smaller rtol, or another solver"
    )

    @abc.abstractmethod
    def pace(self, flow: AbstractFlow, problem: Problem, params: PyTree[Array]) -> Pace:
        """dθ/ds and log dt/ds."""

    @abc.abstractmethod
    def is_over(self, flow: AbstractFlow, problem: Problem, params: PyTree[Array]) -> Bool[Array, ""]:
        """Whether the clock's variable can't grow at `params`."""

    @abc.abstractmethod
    def check(self, problem: Problem) -> None:
        """Raises `ValueError` if this clock can't run on such a problem."""

    def term(self, flow: AbstractFlow, problem: Problem) -> diffrax.ODETerm:
        """The flow in this clock as a diffrax term, for use with `diffrax.diffeqsolve`."""
        return diffrax.ODETerm(_Field(self, flow, problem))


class Time(AbstractClock):
    """Plain time t, dt/ds = 1."""

    symbol: ClassVar[str] = "t"
    max_rtol: ClassVar[float] = np.inf
    curves: ClassVar[bool] = False
    share: ClassVar[float] = 1.0

    def pace(self, flow, problem, params):
        """F itself."""
        field = flow.vector_field(problem, jnp.zeros((), problem.dtype), params)
        return Pace(jnp.zeros((), problem.dtype), field)

    def is_over(self, flow, problem, params):
        """Never."""
        return jnp.array(False)

    def check(self, problem):
        """Nothing to check."""

    def term(self, flow, problem):
        """As the flow gives it, which may depend on time."""
        return flow.term(problem)


class LogLoss(AbstractClock):
    r"""Log-loss time τ, dτ = L dt: gradient flow becomes dθ/dτ = −∇ log L(θ).

    For losses with an exponential tail and linear models τ grows like the margin, where t grows like its
    exponential. log L is taken by logsumexp from the logarithms of the losses of single examples, so that
    nothing underflows.

    ??? cite "References"

        K. Lyu and J. Li. Gradient Descent Maximizes the Margin of Homogeneous Neural Networks. ICLR 2020.
        [arXiv:1906.05890](https://arxiv.org/abs/1906.05890)
    """

    symbol: ClassVar[str] = "τ"
    curves: ClassVar[bool] = False

    def pace(self, flow, problem, params):
        """F/L and −log L."""
        log_loss, field = _per_loss(flow, problem, params)
        return Pace(-log_loss, field)

    def is_over(self, flow, problem, params):
        """Never."""
        return jnp.array(False)

    def check(self, problem):
        """Raises `ValueError` for a loss without an exponential tail."""
        _check_tail(self, problem)


class LogNorm(AbstractClock):
    r"""Log-norm time, s = log (‖θ‖ / ‖θ(s=0)‖): with F ∝ g, dθ/ds = ‖θ‖² g / ⟨θ, g⟩.

    For homogeneous models of degree two and more, in which log-loss time ends after a finite horizon or runs
    exponentially fast. ‖θ‖ must grow, ⟨θ, g⟩ > 0, as it does for homogeneous models once all examples are
    classified rightly; [`gflow.clocks.TwoPhase`][] begins in another clock and changes over then.

    ??? cite "References"

        K. Lyu and J. Li. Gradient Descent Maximizes the Margin of Homogeneous Neural Networks. ICLR 2020.
        [arXiv:1906.05890](https://arxiv.org/abs/1906.05890)
    """

    symbol: ClassVar[str] = "s"
    refusal: ClassVar[str] = (
        "needs parameters whose norm grows where it starts, but ⟨θ, dθ/dt⟩ ≤ 0 there; begin with another "
        "clock until the loss is small, clock=gflow.clocks.TwoPhase()."
    )
    failure: ClassVar[str] = (
        "the norm of the parameters stopped growing, ⟨θ, dθ/dt⟩ ≤ 0, or the next step would raise the loss: "
        "the path has left the cone in which all examples are classified rightly; use a smaller rtol, "
        "another solver, or TwoPhase with a lower loss_below"
    )

    def pace(self, flow, problem, params):
        """q g and log q − log L with g = F/L, q = ‖θ‖² / ⟨θ, g⟩; NaN where ‖θ‖ doesn't grow."""
        log_loss, g = _per_loss(flow, problem, params)
        growth = _tree.dot(params, g)
        q = jnp.where(growth > 0, _tree.dot(params, params) / jnp.where(growth > 0, growth, 1), jnp.nan)
        return Pace(jnp.log(q) - log_loss, jax.tree.map(lambda x: q * x, g))

    def is_over(self, flow, problem, params):
        """Whether ‖θ‖ grows ten thousand times slower in log-loss time than at the start, or not at all."""

        def slowness(params):
            return self.pace(flow, problem, params).log_rate + _per_loss(flow, problem, params)[0]

        return ~(slowness(params) < slowness(problem.params) + jnp.log(1e4))

    def check(self, problem):
        """Raises `ValueError` for a loss without an exponential tail."""
        _check_tail(self, problem)


class Arclength(AbstractClock):
    """Arclength s, ds = ‖F‖ dt: the flow at unit speed, dθ/ds = F/‖F‖.

    It passes plateaus and saddles in few steps, and ends where the flow comes to rest: a run whose horizon
    lies beyond the length of the path fails there.
    """

    symbol: ClassVar[str] = "s"
    refusal: ClassVar[str] = (
        "needs a flow that moves where it starts, but its speed is 0 or infinite there; perturb the "
        "parameters."
    )
    failure: ClassVar[str] = (
        "the flow came to rest, so that its path has no more length, or the next step would raise the loss; "
        "give a shorter horizon, or stop=gflow.stop.GradientNormBelow(...)"
    )

    def is_over(self, flow, problem, params):
        """Whether the flow is a million times slower than at the start."""
        at_start = self.pace(flow, problem, problem.params).log_rate
        return ~(self.pace(flow, problem, params).log_rate < at_start + jnp.log(1e6))

    def pace(self, flow, problem, params):
        """F/‖F‖ and −log ‖F‖."""
        if _has_tail(problem) and flow.descends:
            log_loss, field = _per_loss(flow, problem, params)
        else:
            log_loss = jnp.zeros((), problem.dtype)
            field = flow.vector_field(problem, jnp.zeros((), problem.dtype), params)
        speed = _tree.norm(field)
        return Pace(-log_loss - jnp.log(speed), jax.tree.map(lambda x: x / speed, field))

    def check(self, problem):
        """Nothing to check."""


class TwoPhase(eqx.Module):
    """One clock until the loss has fallen to a level, and then another.

    The two phases are one run. `t_max` and `save_at` count in the variable of the second clock, which is 0 at
    the switch, and `stop` conditions are watched from there on; `max_steps` counts for each phase. Records of
    the first phase are its start, the switch, and those at `times`; their `s` is the variable of the first
    clock counted back from the switch, so that it is negative. The trajectory's attribute `switch` is the
    index of the record at the switch.

    **Arguments:**

    - `first`, `second`: the clocks, plain time and log-norm time by default.
    - `loss_below`: the level, by default 0.3/n with n examples. No example can be on the wrong side then,
        because it alone would add log(2)/n or more.
    - `times`: values of the first clock's variable at which to record as well; those after the switch are
        left out.
    """

    first: AbstractClock = Time()
    second: AbstractClock = LogNorm()
    loss_below: float | None = None
    times: Sequence[float] | np.ndarray = ()


class _Field(eqx.Module):
    """A clock, a flow and its problem as the function (s, y, args) that diffrax asks for."""

    clock: AbstractClock
    flow: AbstractFlow
    problem: Problem

    def __call__(self, s, params, args):
        del s, args
        return self.clock.pace(self.flow, self.problem, params).field


class Mark(NamedTuple):
    """A place on a path as a clock sees it."""

    log_t: Float[Array, ""]
    log_rate: Float[Array, ""]
    slope: Float[Array, ""]  # of log_rate, in the clock's variable
    course: "Course"  # of log_rate over the step that led here
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
    if _has_tail(problem):
        log_loss, steepness = _height(problem, problem.params)
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
        log_loss, steepness = _height(problem, params)
        if flow.descends:  # up to the error of the solver where the flow is at rest, and rounding
            allowed = 1e-2 + 100 * float(jnp.finfo(log_loss.dtype).eps) * jnp.abs(descent.lowest)
            holds &= log_loss <= descent.lowest + allowed
        lowest = jnp.minimum(descent.lowest, log_loss)
        descent = Descent(log_loss, lowest, steepness, jnp.maximum(descent.steepest, steepness))
    return Mark(log_t, log_rate, slope, rate, error, descent, holds)


def log_time(before: Mark, rate: "Course", until: Array) -> Float[Array, ""]:
    """log t at a share of a step."""
    return jnp.logaddexp(before.log_t, log_elapsed(rate, until))


def quantities(problem: Problem, params: PyTree[Array]) -> dict[str, Array]:
    """Loss and gradient norm, by way of log L where that is possible: one gradient."""
    if not _has_tail(problem):
        loss, gradient = problem.value_and_gradient(params)
        return {"loss": loss, "gradient_norm": _tree.norm(gradient)}
    log_loss, steepness = _height(problem, params)
    loss = jnp.exp(log_loss)
    return {"loss": loss, "gradient_norm": loss * steepness, "log_loss": log_loss}


def recorded(problem: Problem) -> tuple[str, ...]:
    """The names of what every record holds in a clock other than plain time."""
    return ("loss", "gradient_norm", *["log_loss"] * _has_tail(problem), "log_t")


def halts(problem: Problem, mark: Mark) -> bool:
    """Whether the loss has stopped to fall although some example is on the wrong side."""
    if mark.descent is None:
        return False
    wrong = float(mark.descent.log_loss) > np.log(np.log(2) / problem.examples)
    return bool(wrong and mark.descent.steepness < 0.1 * mark.descent.steepest)


def _rate(clock: AbstractClock, flow: AbstractFlow, problem: Problem, params: PyTree) -> tuple[Array, Array]:
    """log dt/ds and its derivative along the path."""
    _, field = clock.pace(flow, problem, params)
    return jax.jvp(lambda p: clock.pace(flow, problem, p).log_rate, (params,), (field,))


def _height(problem: Problem, params: PyTree[Array]) -> tuple[Array, Array]:
    """log L and ‖∇ log L‖."""
    log_loss, gradient = _logarithm(problem).value_and_gradient(params)
    return log_loss, _tree.norm(gradient)


def _per_loss(flow: AbstractFlow, problem: Problem, params: PyTree[Array]) -> tuple[Array, PyTree[Array]]:
    """log L and F/L."""
    logarithm, zero = _logarithm(problem), jnp.zeros((), problem.dtype)
    log_loss = logarithm.value(params)
    if flow.descends:  # its field is proportional to ∇L, and ∇ log L = ∇L / L
        return log_loss, flow.vector_field(logarithm, zero, params)
    field = flow.vector_field(problem, zero, params)
    return log_loss, jax.tree.map(lambda x: x * jnp.exp(-log_loss), field)


def _logarithm(problem: Problem) -> Problem:
    """The problem of log L."""
    assert isinstance(problem.loss, AbstractExponentialTail)  # or this isn't called
    return eqx.tree_at(lambda p: p.loss, problem, Log(problem.loss))


def _has_tail(problem: Problem) -> bool:
    return isinstance(problem.loss, AbstractExponentialTail) and problem.chunk_size is None


def _check_tail(clock: AbstractClock, problem: Problem) -> None:
    name = f"clock={type(clock).__name__}()"
    if isinstance(problem.loss, Log):
        raise ValueError(
            f"{name} takes the logarithm by itself, but the loss is {problem.loss!r}; pass "
            f"loss={problem.loss.loss!r}."
        )
    if not isinstance(problem.loss, AbstractExponentialTail):
        raise ValueError(
            f"{name} needs a loss whose logarithm is known where it underflows, Logistic(), Exponential(), "
            f"CrossEntropy() or another AbstractExponentialTail, but the loss is {problem.loss!r}; use "
            "Arclength() or plain time for it."
        )
    if problem.chunk_size is not None:
        raise ValueError(f"{name} can't be used with chunk_size, because log L is no mean over examples.")


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
