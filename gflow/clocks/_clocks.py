"""The clocks: how fast time passes in the variable of each, and along which field."""

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
from gflow.clocks._logarithm import has_tail, per_loss
from gflow.flows import AbstractFlow
from gflow.losses import AbstractExponentialTail, Log


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
    - `longest`: the longest step, where the growth of the parameters sets one: records are interpolated by a
        cubic, also those of solvers that are exact for any step.
    - `curves`: whether the derivative of its rate takes a Hessian-vector product.
    - `failure`: why a run ends in which the clock goes wrong; `refusal`: why one can't begin.
    """

    symbol: ClassVar[str]
    max_rtol: ClassVar[float] = 1e-4
    share: ClassVar[float] = 0.05
    longest: ClassVar[float] = np.inf
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
        log_loss, field = per_loss(flow, problem, params)
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
    longest: ClassVar[float] = 0.25
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
        log_loss, g = per_loss(flow, problem, params)
        growth = _tree.dot(params, g)
        q = jnp.where(growth > 0, _tree.dot(params, params) / jnp.where(growth > 0, growth, 1), jnp.nan)
        return Pace(jnp.log(q) - log_loss, jax.tree.map(lambda x: q * x, g))

    def is_over(self, flow, problem, params):
        """Whether ‖θ‖ grows ten thousand times slower in log-loss time than at the start, or not at all."""

        def slowness(params):
            return self.pace(flow, problem, params).log_rate + per_loss(flow, problem, params)[0]

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
        if has_tail(problem) and flow.descends:
            log_loss, field = per_loss(flow, problem, params)
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

    **Raises:** `ValueError` for `times` that are no such values.
    """

    first: AbstractClock = Time()
    second: AbstractClock = LogNorm()
    loss_below: float | None = None
    times: Sequence[float] | np.ndarray = ()

    def __check_init__(self):
        times = np.asarray(self.times)
        if (
            times.ndim != 1
            or (times.size and times.dtype.kind not in "iuf")
            or not np.all(np.isfinite(times) & (times >= 0))
        ):
            raise ValueError(
                f"times must be readings of the first clock, finite and at least 0, but {self.times!r} came."
            )


class _Field(eqx.Module):
    """A clock, a flow and its problem as the function (s, y, args) that diffrax asks for."""

    clock: AbstractClock
    flow: AbstractFlow
    problem: Problem

    def __call__(self, s, params, args):
        del s, args
        return self.clock.pace(self.flow, self.problem, params).field


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
