"""Gradient flow, integrated with error control."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, PyTree

from gflow._ensemble import EnsembleRun
from gflow._flow_path import FlowPath
from gflow._members import split
from gflow._numbers import Real, count, is_number, positive, refuse_traced
from gflow._path import AbstractPath
from gflow._problem import Problem
from gflow._stepper import Run
from gflow._switch import Switch
from gflow._trajectory import Trajectory
from gflow._two_phase import TwoPhaseRun
from gflow._watch import Watch
from gflow.clocks import AbstractClock, Time, TwoPhase
from gflow.clocks import _mark as marks
from gflow.clocks._clocks import Refused
from gflow.flows import AbstractFlow, GradientFlow, LinearisedFlow, WeightDecay
from gflow.observe import RESERVED, AbstractObservable, as_observables
from gflow.solvers import AbstractFlowSolver, Predictive, choose
from gflow.solvers._exprb import is_autonomous
from gflow.stop import AbstractStop, LossBelow

_MAX_STEPS = 1_000_000
_MAX_STEPS_OF_CLOCKS = 100_000  # many times what a run needs that doesn't slide along kinks
# diffeqsolve starts with this one as well. Too long a step costs a few rejections, too short a one
# is left behind by factors of ten.
_FIRST_STEP = 0.01


def integrate(
    model: Callable | PyTree,
    data: PyTree,
    t_max: Real,
    *,
    loss: Callable | None = None,
    trainable: PyTree | Callable[[Any], bool] | None = None,
    flow: AbstractFlow | None = None,
    clock: AbstractClock | TwoPhase | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: Real = 1e-4,
    atol: Real = 1e-7,
    controller: diffrax.AbstractStepSizeController | None = None,
    dt0: Real | None = None,
    save_at: int | Sequence[float] | Array | np.ndarray = 101,
    save_models: bool = False,
    ensemble: bool = False,
    observe: Sequence[AbstractObservable] | Mapping[str, Callable | AbstractObservable] = (),
    stop: AbstractStop | Sequence[AbstractStop] | None = None,
    chunk_size: int | None = None,
    max_steps: int | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike | None = None,
    throw: bool = True,
) -> Trajectory:
    """Integrates the gradient flow dθ/dt = −∇L(θ) from the model's parameters to time `t_max`.

    **Arguments:**

    - `model`, `data`, `loss`, `trainable`, `chunk_size`: as for [`gflow.Problem`][].
    - `t_max`: the horizon, a positive time. `inf` is allowed together with `stop` and explicit save
        times.
    - `flow`: the vector field, by default [`gflow.flows.GradientFlow`][].
    - `clock`: the variable in which the path is traversed, one of [`gflow.clocks`][]; by default plain time.
        Horizon, `dt0` and save times are in its unit, and stop conditions may also name `"log_loss"` (with a
        loss that has a logarithm of its own) and `"log_t"`. A clock other than plain time gives each step
        a twentieth of the tolerances, and less where an error of the parameters moves large margins; it
        controls the error of log t by itself as well, and accepts `rtol` up to 1e-4.
    - `solver`: any diffrax ODE solver, or one of [`gflow.solvers`][]. By default one is chosen by size and
        tolerance ([`gflow.solvers.choose`][]), and for smooth problems another takes its place in the midst
        of the run where that is measured to be cheaper; `stats` says which, and why. With a
        `controller` of your own the default is `diffrax.Tsit5()`.
    - `rtol`, `atol`: tolerances of the step-size control: the root mean square over parameters of
        error / (atol + rtol |θ|) is kept below 1 in every step; with a solver of [`gflow.solvers`][] they
        are first translated so that the error at the end, and not that of a step, is about `rtol`.
        `atol` must lie far below the scale of a tiny initialisation. Beside a `controller` of your own they
        only fill in what an implicit solver leaves open.
    - `controller`: a diffrax step size controller in place of `diffrax.PIDController(rtol, atol)` (of
        [`gflow.solvers.Predictive`][] for the solvers there), for instance `diffrax.ConstantStepSize()`
        with `dt0`.
    - `dt0`: the first step; by default 0.01, or with [`gflow.solvers.Predictive`][] what the speed at the
        start suggests. From there the controller takes over.
    - `save_at`: how many evenly spaced times to record, both ends included, or an increasing array of
        times. The steps are the same whatever is recorded.
    - `save_models`: whether to keep the model at every record.
    - `ensemble`: whether `model` holds many members at once, see below.
    - `observe`: what to record besides loss and gradient norm: a sequence of [`gflow.observe`][] objects,
        or a dictionary from names to functions `(model, data) -> array`.
    - `stop`: one or several conditions of [`gflow.stop`][] that end the run early.
    - `max_steps`: the most steps to attempt; by default a million, 100 000 in other clocks than plain time.
    - `progress`: whether to show a progress bar with t, the loss of the last record, and the step size.
    - `checkpoint`: a file in which the state of the run is kept (every half minute, and when it is
        interrupted). If it exists, the run goes on from there, to the same result bit for bit.
    - `throw`: whether to raise when the run fails; otherwise the partial trajectory is returned, with its
        `status` saying why.

    **Ensembles:** with `ensemble=True` every trainable leaf has a leading axis of members, as
    `eqx.filter_vmap` of a constructor over keys gives it. All members are integrated in one compiled loop,
    each with step size, stop and status of its own, and each as if it were alone up to rounding. Data are
    shared, and so are arrays of the model that aren't trainable, unless all of these have the member axis
    as well. Records have the member axis first ([`gflow.Trajectory`][]). A member that stops early or fails
    leaves the others as they are; with `throw` the error comes when all have ended. The members advance
    together from one record to the next, so that each waits for the slowest. Members that `jax.device_put`
    has spread over devices, by a `NamedSharding` of the leading axis, are followed where they lie; nothing
    else is to be placed on devices then, and the solver must not be one of diffrax's implicit ones.
    `checkpoint` can't be used.

    **Returns:** a [`gflow.Trajectory`][].

    **Raises:** `ValueError` for arguments that make no sense, [`gflow.FlowError`][] (carrying the partial
    trajectory) if the run fails. Ctrl-C returns the partial trajectory with status "interrupted".
    """
    numbers = dict(rtol=rtol, atol=atol, dt0=dt0, save_at=save_at)
    refuse_traced("integrate", model=model, data=data, t_max=t_max, loss=loss, flow=flow, **numbers)
    if ensemble:
        problem, members = split(model, data, loss, trainable=trainable, chunk_size=chunk_size)
    else:
        problem, members = Problem(model, data, loss, trainable=trainable, chunk_size=chunk_size), None
    options: dict[str, Any] = dict(
        flow=flow,
        solver=solver,
        rtol=rtol,
        atol=atol,
        controller=controller,
        dt0=dt0,
        save_at=save_at,
        save_models=save_models,
        observe=observe,
        stop=stop,
        max_steps=max_steps,
        progress=progress,
        checkpoint=checkpoint,
    )
    if isinstance(clock, TwoPhase):
        if members is not None:
            raise ValueError(
                "clock=TwoPhase() can't be used with ensemble=True, because members switch at different "
                "times; run them one by one."
            )
        run = _two_phases(problem, t_max, clock, **options)
    else:
        run = flow_run(problem, t_max, clock=clock, alone=members is None, **options)
        if members is not None:
            _check_members(run.path, members)
            run = EnsembleRun(run, members)
    return run.complete().trajectory(throw)


def flow_run(
    problem: Problem,
    t_max: Real,
    *,
    flow: AbstractFlow | None = None,
    clock: AbstractClock | None = None,
    log_t0: float = -math.inf,
    solver: diffrax.AbstractSolver | None = None,
    rtol: Real = 1e-4,
    atol: Real = 1e-7,
    controller: diffrax.AbstractStepSizeController | None = None,
    dt0: Real | None = None,
    save_at: Any = 101,
    save_models: bool = False,
    observe: Any = (),
    stop: Any = None,
    max_steps: int | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike | None = None,
    alone: bool = True,
) -> Run:
    """The arguments of `integrate`, checked, as a run that has not begun."""
    dtype = problem.dtype
    flow = GradientFlow() if flow is None else flow
    if not isinstance(flow, AbstractFlow):
        raise ValueError(f"flow must be one of gflow.flows, such as GradientFlow(), but {flow!r} came.")
    clock = Time() if clock is None else clock
    plain = isinstance(clock, Time) and log_t0 == -math.inf
    _check_clock(clock, flow, problem, plain, alone)
    observables = as_observables(observe)
    recorded = RESERVED if plain else marks.recorded(problem)
    watch = Watch(stop, observables, dtype, recorded)
    times = _save_times(save_at, t_max, bool(watch), dtype)
    reason, rival = "named by the user", None
    if controller is None:
        rtol, atol = _check_rtol(rtol, dtype, clock), positive("atol", atol, "tolerance", dtype)
        if solver is None:
            # gradients of something else than L, which another clock divides by what depends on θ
            other = isinstance(flow, WeightDecay | LinearisedFlow) and isinstance(clock, Time)
            symmetric = isinstance(flow, GradientFlow) or other
            solver, reason, rival = choose(problem, rtol, symmetric=symmetric, clock=clock, alone=alone)
        rtol, atol = clock.share * rtol, clock.share * atol
        controller = diffrax.PIDController(rtol=rtol, atol=atol)
        if isinstance(solver, AbstractFlowSolver):
            controller = Predictive(*solver.tolerances(rtol, atol))
    elif solver is None:
        solver, reason = diffrax.Tsit5(), "the default beside a step size controller of the user's own"
    controller = _with_arrays(controller, dtype)
    if not (
        isinstance(solver, diffrax.AbstractSolver)
        and isinstance(solver.term_structure, type)
        and issubclass(diffrax.ODETerm, solver.term_structure)
    ):
        raise ValueError(
            f"solver must be a diffrax solver for ODEs with one vector field, such as "
            f"diffrax.Tsit5(), but {solver!r} came."
        )
    adaptive = isinstance(controller, diffrax.AbstractAdaptiveStepSizeController)
    if adaptive and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            f"solver must give an error estimate for an adaptive step size, but {type(solver).__name__} has "
            "none; pass controller=diffrax.ConstantStepSize() with dt0, or another solver."
        )
    if isinstance(controller, diffrax.ConstantStepSize) and dt0 is None:
        raise ValueError("dt0 must be given with controller=ConstantStepSize(), as the step to take.")
    if dt0 is not None:
        dt0 = positive("dt0", dt0, "step size", dtype)
    elif adaptive and not isinstance(controller, Predictive):  # which knows a better one
        dt0 = _FIRST_STEP
    path = FlowPath(
        problem=problem,
        watch=watch,
        flow=flow,
        clock=clock,
        plain=plain,
        log_t0=jnp.asarray(log_t0, dtype),
        solver=_with_tolerances(solver, controller, rtol, atol),
        controller=controller.wrap(1),
        t_max=jnp.asarray(t_max, dtype),
        dt0=None if dt0 is None else jnp.asarray(dt0, dtype),
        reason=reason,
    )
    most = _MAX_STEPS if isinstance(clock, Time) else _MAX_STEPS_OF_CLOCKS
    return Run(
        path,
        # in the precision of the run, so that the last one is t_max exactly
        times.astype(dtype).astype(np.float64).tolist(),
        time=float,
        times=times.tolist(),
        end=float(path.t_max),
        symbol=clock.symbol,
        observables=observables,
        save_models=save_models,
        max_steps=most if max_steps is None else count("max_steps", max_steps),
        progress=progress,
        checkpoint=checkpoint,
        switch=None if rival is None else Switch(path, _with_solver(path, rival, rtol, atol)),
    )


def _with_solver(path: FlowPath, solver: AbstractFlowSolver, rtol: Real, atol: Real) -> FlowPath:
    """The same path with another solver and its controller."""
    controller = _with_arrays(Predictive(*solver.tolerances(rtol, atol)), path.problem.dtype)
    prepared = _with_tolerances(solver, controller, rtol, atol)
    return dataclasses.replace(path, solver=prepared, controller=controller.wrap(1))


def _with_arrays(
    controller: diffrax.AbstractStepSizeController, dtype: np.dtype
) -> diffrax.AbstractStepSizeController:
    """Its floats as arrays, so that other tolerances are other numbers and not another program."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if isinstance(x, float) else x, controller)


def _with_tolerances(
    solver: diffrax.AbstractSolver, controller: diffrax.AbstractStepSizeController, rtol, atol
) -> diffrax.AbstractSolver:
    """Gives the tolerances of the controller to solvers of gflow, and to an implicit one that has none."""
    if isinstance(solver, AbstractFlowSolver):
        return solver.prepared(getattr(controller, "rtol", rtol), getattr(controller, "atol", atol))
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver
    finder = solver.root_finder
    offered = {
        "rtol": getattr(controller, "rtol", rtol),
        "atol": getattr(controller, "atol", atol),
        "norm": getattr(controller, "norm", optx.rms_norm),
    }
    # diffrax marks an open tolerance by an object that is neither a number nor a function
    is_open = lambda x: not eqx.is_array_like(x) and not callable(x)
    names = [name for name in offered if is_open(getattr(finder, name))]
    return eqx.tree_at(
        lambda s: [getattr(s.root_finder, name) for name in names],
        solver,
        [offered[name] for name in names],
    )


def _two_phases(problem: Problem, t_max: Real, clock: TwoPhase, **options: Any) -> TwoPhaseRun:
    """The run in the second clock, and before it one in the first from which it starts."""
    flow = options["flow"]
    flow = GradientFlow() if flow is None else flow
    for one in (clock.first, clock.second):
        _check_kind(one)
        one.check(problem)
    if options["controller"] is None:
        _check_rtol(options["rtol"], problem.dtype, clock.second)
    recorded = marks.recorded(problem)
    observables = as_observables(options["observe"])
    Watch(options["stop"], observables, problem.dtype, recorded)
    _save_times(options["save_at"], t_max, bool(options["stop"]), problem.dtype)
    level = 0.3 / problem.examples if clock.loss_below is None else clock.loss_below
    level = positive("loss_below", level, "loss", problem.dtype)
    times = np.unique(np.append(0.0, np.asarray(clock.times)).astype(problem.dtype)).astype(np.float64)
    checkpoint = options.pop("checkpoint")
    most = _MAX_STEPS_OF_CLOCKS if options["max_steps"] is None else options["max_steps"]
    stop, save_at = LossBelow(level), times
    before = None if checkpoint is None else f"{os.fspath(checkpoint)}.first"
    first = flow_run(
        problem,
        math.inf,
        clock=clock.first,
        checkpoint=before,
        **options | {"stop": stop, "save_at": save_at, "max_steps": most},
    )

    def begin(problem: Problem, log_t0: float, observed: PyTree) -> Run:
        going_on: dict[str, Any] = options | {"flow": flow.anchored(first.path.problem.params)}
        run = flow_run(problem, t_max, clock=clock.second, log_t0=log_t0, checkpoint=checkpoint, **going_on)
        run.observed = observed
        return run

    return TwoPhaseRun(first, begin)


def _check_kind(clock: Any) -> None:
    if not isinstance(clock, AbstractClock):
        raise ValueError(
            f"clock must be one of gflow.clocks, such as gflow.clocks.LogLoss(), but {clock!r} came."
        )


def _check_clock(clock: Any, flow: AbstractFlow, problem: Problem, plain: bool, alone: bool) -> None:
    _check_kind(clock)
    field = lambda t, params, _: flow.vector_field(problem, t, params)
    if not plain and not is_autonomous(field, 0.0, problem.params, None):
        raise ValueError(
            f"flow must not depend on time in clock={type(clock).__name__}(), but {type(flow).__name__} "
            "reads t; use plain time for it."
        )
    clock.check(problem)
    if alone and not plain and eqx.filter_jit(type(clock).is_over)(clock, flow, problem, problem.params):
        raise Refused(f"clock={type(clock).__name__}() {clock.refusal}")


def _check_members(path: AbstractPath, members: Problem) -> None:
    """Raises `Refused` with the members of an ensemble where the clock can't begin."""
    assert isinstance(path, FlowPath)
    if path.plain:
        return

    def is_over(member: Problem) -> Array:
        problem = eqx.combine(member, path.problem)
        return path.clock.is_over(path.flow, problem, problem.params)

    unfit = np.flatnonzero(eqx.filter_jit(eqx.filter_vmap(is_over))(members))
    if len(unfit):
        listed = ", ".join(map(str, unfit[:5])) + (" …" if len(unfit) > 5 else "")
        raise Refused(f"clock={type(path.clock).__name__}() {path.clock.refusal} (Not so: members {listed}.)")


def _check_rtol(rtol: Any, dtype: np.dtype, clock: AbstractClock) -> float:
    rtol, finest = positive("rtol", rtol, "tolerance", dtype), 10 * float(jnp.finfo(dtype).eps) / clock.share
    if rtol < finest:
        where = "" if clock.share == 1 else f" with clock={type(clock).__name__}()"
        raise ValueError(
            f"rtol must be at least {finest:.1e} in {np.dtype(dtype).name}{where}, but {rtol:.1e} came; "
            'enable x64, jax.config.update("jax_enable_x64", True), and use a float64 model, or loosen rtol.'
        )
    if rtol > clock.max_rtol * (1 + 1e-6):
        raise ValueError(
            f"rtol must be at most {clock.max_rtol:g} with clock={type(clock).__name__}(), but {rtol:g} "
            "came; over its long horizons steps at looser tolerances may leave the path unnoticed."
        )
    return rtol


def _save_times(save_at: Any, t_max: Any, has_stop: bool, dtype: np.dtype) -> np.ndarray:
    endless = is_number(t_max) and float(t_max) == math.inf
    if not endless:
        t_max = positive("t_max", t_max, "time", dtype)
    if endless and (not has_stop or np.ndim(save_at) == 0):
        raise ValueError(
            "t_max may be infinite only together with stop= and an array of times as save_at; give a "
            "finite horizon."
        )
    if np.ndim(save_at) == 0:
        if isinstance(save_at, bool) or not isinstance(save_at, (int, np.integer)) or save_at < 2:
            raise ValueError(
                f"save_at must be a number of times, at least 2, or an array of times, but {save_at!r} came."
            )
        times = np.linspace(0.0, float(t_max), int(save_at))
    else:
        times = np.asarray(save_at, dtype=np.float64)
        if times.ndim != 1 or not len(times) or not np.all(np.isfinite(times)):
            raise ValueError(
                f"save_at must be a one-dimensional array of finite times, but {save_at!r} came."
            )
        unsorted = np.flatnonzero(np.diff(times.astype(dtype)) <= 0)
        if len(unsorted):
            i = int(unsorted[0])
            raise ValueError(
                f"save_at must increase strictly in {np.dtype(dtype).name}, but save_at[{i}] = "
                f"{times[i]:.9g} is followed by {times[i + 1]:.9g}; sort the times and remove duplicates."
            )
        given = np.asarray(save_at).dtype  # in which the horizon may be rounded up
        coarse = given if given.kind == "f" and given.itemsize < np.dtype(dtype).itemsize else dtype
        if times[0] < 0 or times.astype(coarse)[-1] > np.asarray(t_max, np.float64).astype(coarse):
            raise ValueError(
                f"save_at must lie between 0 and t_max = {float(t_max):.6g}, but runs from "
                f"{times[0]:.6g} to {times[-1]:.6g}."
            )
    return np.minimum(times, float(t_max))
