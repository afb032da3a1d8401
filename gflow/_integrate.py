"""Gradient flow, integrated with error control."""

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
from gflow._numbers import Real, count, is_number, positive
from gflow._problem import Problem
from gflow._stepper import Run
from gflow._trajectory import Trajectory
from gflow._watch import Watch
from gflow.flows import AbstractFlow, GradientFlow
from gflow.observe import AbstractObservable, as_observables
from gflow.solvers import AbstractFlowSolver, Predictive, choose
from gflow.stop import AbstractStop

_MAX_STEPS = 1_000_000
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
    solver: diffrax.AbstractSolver | None = None,
    rtol: Real = 1e-4,
    atol: Real = 1e-7,
    controller: diffrax.AbstractStepSizeController | None = None,
    dt0: Real | None = None,
    save_at: int | Sequence[float] | Array | np.ndarray = 101,
    save_models: bool = False,
    ensemble: bool = False,
    observe: Sequence[AbstractObservable] | Mapping[str, Callable | AbstractObservable] = (),
    stop: AbstractStop | Sequence[AbstractStop] = (),
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
    - `solver`: any diffrax ODE solver, or one of [`gflow.solvers`][]. By default one is chosen by size and
        tolerance ([`gflow.solvers.choose`][]); `stats` says which, and why. With a `controller` of your
        own the default is `diffrax.Tsit5()`.
    - `rtol`, `atol`: tolerances of the step-size control: the root mean square over parameters of
        error / (atol + rtol |θ|) is kept below 1 in every step; with a solver of [`gflow.solvers`][] they
        are first translated so that the error at the end, and not that of a step, is about `rtol`.
        `atol` must lie far below the scale of a tiny initialisation.
    - `controller`: a diffrax step size controller in place of `diffrax.PIDController(rtol, atol)` (of
        [`gflow.solvers.Predictive`][] for the solvers there), for instance `diffrax.ConstantStepSize()`
        with `dt0`.
    - `dt0`: the first step; by default 0.01, or with a solver of [`gflow.solvers`][] what the speed at the
        start suggests. From there the controller takes over.
    - `save_at`: how many evenly spaced times to record, both ends included, or an increasing array of
        times. The steps are the same whatever is recorded.
    - `save_models`: whether to keep the model at every record.
    - `ensemble`: whether `model` holds many members at once, see below.
    - `observe`: what to record besides loss and gradient norm: a sequence of [`gflow.observe`][] objects,
        or a dictionary from names to functions `(model, data) -> array`.
    - `stop`: one or several conditions of [`gflow.stop`][] that end the run early.
    - `max_steps`: the most steps to attempt; by default a million.
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
    together from one record to the next, so that each waits for the slowest. `checkpoint` can't be used.

    **Returns:** a [`gflow.Trajectory`][].

    **Raises:** `ValueError` for arguments that make no sense, [`gflow.FlowError`][] (carrying the partial
    trajectory) if the run fails. Ctrl-C returns the partial trajectory with status "interrupted".
    """
    if ensemble:
        problem, members = split(model, data, loss, trainable=trainable, chunk_size=chunk_size)
    else:
        problem, members = Problem(model, data, loss, trainable=trainable, chunk_size=chunk_size), None
    run = flow_run(
        problem,
        t_max,
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
    return (run if members is None else EnsembleRun(run, members)).complete().trajectory(throw)


def flow_run(
    problem: Problem,
    t_max: Real,
    *,
    flow: AbstractFlow | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: Real = 1e-4,
    atol: Real = 1e-7,
    controller: diffrax.AbstractStepSizeController | None = None,
    dt0: Real | None = None,
    save_at: Any = 101,
    save_models: bool = False,
    observe: Any = (),
    stop: Any = (),
    max_steps: int | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike | None = None,
) -> Run:
    """The arguments of `integrate`, checked, as a run that has not begun."""
    dtype = problem.dtype
    observables = as_observables(observe)
    watch = Watch(stop, observables, dtype)
    times = _save_times(save_at, t_max, bool(watch), dtype)
    flow = GradientFlow() if flow is None else flow
    reason = "named by the user"
    if controller is None:
        rtol, atol = _check_rtol(rtol, dtype), positive("atol", atol, "tolerance", dtype)
        if solver is None:
            symmetric = isinstance(flow, GradientFlow)
            solver, reason = choose(problem, rtol, symmetric=symmetric)
        controller = diffrax.PIDController(rtol=rtol, atol=atol)
        if isinstance(solver, AbstractFlowSolver):
            inner = solver.tolerances(rtol, atol)
            solver, controller = solver.prepared(*inner), Predictive(*inner)
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
        solver=_with_tolerances(solver, controller, rtol, atol),
        controller=controller.wrap(1),
        t_max=jnp.asarray(t_max, dtype),
        dt0=None if dt0 is None else jnp.asarray(dt0, dtype),
        reason=reason,
    )
    return Run(
        path,
        # in the precision of the run, so that the last one is t_max exactly
        times.astype(dtype).astype(np.float64).tolist(),
        time=float,
        times=times.tolist(),
        end=float(path.t_max),
        observables=observables,
        save_models=save_models,
        max_steps=_MAX_STEPS if max_steps is None else count("max_steps", max_steps),
        progress=progress,
        checkpoint=checkpoint,
    )


def _with_arrays(
    controller: diffrax.AbstractStepSizeController, dtype: np.dtype
) -> diffrax.AbstractStepSizeController:
    """Its floats as arrays, so that other tolerances are other numbers and not another program."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if isinstance(x, float) else x, controller)


def _with_tolerances(
    solver: diffrax.AbstractSolver, controller: diffrax.AbstractStepSizeController, rtol, atol
) -> diffrax.AbstractSolver:
    """Fills in the tolerances that an implicit solver leaves to the step size controller."""
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


def _check_rtol(rtol: Any, dtype: np.dtype) -> float:
    rtol, finest = positive("rtol", rtol, "tolerance", dtype), 10 * float(jnp.finfo(dtype).eps)
    if rtol < finest:
        raise ValueError(
            f"rtol must be at least {finest:.1e} in {np.dtype(dtype).name}, but {rtol:.1e} came; enable x64 "
            'with jax.config.update("jax_enable_x64", True) and use a float64 model, or loosen rtol.'
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
        unsorted = np.flatnonzero(np.diff(times) <= 0)
        if len(unsorted):
            i = int(unsorted[0])
            raise ValueError(
                f"save_at must increase strictly, but save_at[{i}] = {times[i]:.6g} is followed by "
                f"{times[i + 1]:.6g}; sort the times and remove duplicates."
            )
        if times[0] < 0 or times[-1] > t_max * (1 + 1e-12):
            raise ValueError(
                f"save_at must lie between 0 and t_max = {float(t_max):.6g}, but runs from "
                f"{times[0]:.6g} to {times[-1]:.6g}."
            )
    return np.minimum(times, float(t_max))
