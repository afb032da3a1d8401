"""Which solver a gradient flow gets if nobody names one."""

from typing import NamedTuple

import diffrax as dfx

from gflow._problem import Problem
from gflow.clocks import AbstractClock, LogLoss, Time
from gflow.losses import Log
from gflow.solvers._dense import EXPRB43
from gflow.solvers._exprb import EXPRB42
from gflow.solvers._kinks import has_kinks
from gflow.solvers._rkc import RKC2, RKC3

_SMALL = 500  # parameters
_TIGHT = 1e-6
_FINE = 1e-8  # below, RKC3 takes many more steps than a method of order five, and misses the tolerance
_LARGE = 2_000_000  # parameters of which ninety copies take a gigabyte and a half
_DENSE = 300  # parameters whose Jacobian is cheap to form
_KINKED = 100  # the same where kinks, and not the order of the method, decide how many steps there are


class Choice(NamedTuple):
    """A solver, in one sentence why, and the `rival` to which a run may change, `None` where it may not."""

    solver: dfx.AbstractSolver
    reason: str
    rival: RKC3 | None = None


def choose(
    problem: Problem, rtol: float, *, symmetric: bool, clock: AbstractClock | None = None, alone: bool = True
) -> Choice:
    """The solver for a flow of `problem` to the relative tolerance `rtol`.

    [`EXPRB42`][gflow.solvers.EXPRB42] for a smooth loss of at least 500 parameters and `rtol` from 1e-6,
    otherwise `diffrax.Tsit5`. `symmetric` says whether the Jacobian of the vector field is a symmetric
    matrix, as it is for gradient flow; without it the spectrum need not be real, and in plain time the
    choice is `diffrax.Tsit5` as well. So it is for networks with kinks, such as those of ReLU: every step
    meets some, and an error estimate of high order that feels them makes the steps tiny. Beyond two
    million parameters, whose Krylov vectors would take too much memory, it is [`RKC3`][gflow.solvers.RKC3],
    and so for the members of an ensemble, which aren't `alone`: Krylov spaces of different sizes waste
    time together.

    The stiffness does not decide, because it is not known at the start: out of a saddle the sharpness
    rises many times over. Instead [`gflow.integrate`][] watches along the run whether full Krylov spaces
    limit the steps, as they do where no few eigenvalues stand apart: there it tries RKC3, the `rival`, if
    enough lies ahead to pay for that. It changes to RKC3 where Tsit5, chosen for the size or the
    tolerance (down to 1e-8), makes steps that stability limits, and seconds of them lie ahead; not if the
    loss has kinks. It changes back where RKC3 became dearer.

    In a `clock` other than plain time, and for [`gflow.losses.Log`][], whose flow is in log-loss time as it
    is, the horizon is many thousand times the fastest time scale: there it is
    [`EXPRB43`][gflow.solvers.EXPRB43] up to 300 parameters, or 100 if the loss has kinks, and
    [`RKC2`][gflow.solvers.RKC2] beyond.

    **Returns:** a [`Choice`][gflow.solvers.Choice]: the solver, the reason, and the `rival` or `None`.

    **Raises:** `ValueError` unless `problem` is a [`gflow.Problem`][].
    """
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem must be a gflow.Problem, but is a {type(problem).__name__}; gflow.Problem(model, data, "
            "loss) makes one."
        )
    plain = isinstance(clock, Time | None)
    if (not plain or isinstance(problem.loss, Log)) and problem.dtype.itemsize >= 4:
        kinked = _KINKED < problem.size <= _DENSE and has_kinks(problem.value, problem.params)
        if problem.size <= _DENSE and not kinked:
            solver = EXPRB43(symmetric=symmetric and (plain or isinstance(clock, LogLoss)))
            return Choice(solver, "exponential, because a long horizon is stiff, and the Jacobian is small")
        return Choice(RKC2(), "stabilised, because the long horizon of this clock makes it stiff")
    if not symmetric:
        return Choice(dfx.Tsit5(), "the Jacobian of this flow need not have a real spectrum")
    if problem.dtype.itemsize < 4:
        return Choice(dfx.Tsit5(), "the precision is too low for differences of gradients")
    rival = RKC3() if alone and rtol >= _FINE else None
    if problem.size < _SMALL:
        return Choice(dfx.Tsit5(), "the problem is small, so that the overhead of a step counts most", rival)
    if rtol < _TIGHT:
        return Choice(dfx.Tsit5(), "the tolerance is so tight that the fifth order pays", rival)
    if has_kinks(problem.value, problem.params):
        return Choice(dfx.Tsit5(), "the loss has kinks, which stabilised solvers resolve with tiny steps")
    if not alone:
        return Choice(RKC3(), "stabilised, so that stiffness costs about its square root")
    if problem.size > _LARGE:
        return Choice(RKC3(), "stabilised, because so many parameters leave no room for Krylov spaces")
    return Choice(EXPRB42(), "exponential, so that a few large eigenvalues cost little", RKC3())
