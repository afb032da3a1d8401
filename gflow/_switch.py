"""From the solver with which a run begins to another, where that is clearly cheaper, and back."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from gflow._flow_path import FlowPath, FlowState
from gflow._path import AbstractSwitch
from gflow.solvers import EXPRB32, Predictive
from gflow.solvers._forecast import Forecast, forecast

_GAIN = 2.0  # how many times cheaper per unit of time the other solver must look
_FIRST = 48  # gradients before the first look
_SHARE = 24  # a look may cost this part of the gradients so far
_APART = 12  # and the next comes after so many times its cost
_EVERY = 8  # attempted steps, at the least, between two questions whether to look


class Switch(AbstractSwitch):
    """Looks now and then at what [`gflow.solvers.EXPRB32`][] would cost per unit of time, and changes to it.

    A stabilised solver with `s` stages and the step `h` costs `s/h`. When the other one looks cheaper by a factor of
    two (`gflow.solvers._forecast`), the run goes on with it: only then is it compiled. If later its
    cost, measured over eight steps and more, exceeds that of the first solver before the change, the run goes
    back. When to look depends on steps and gradients alone, so that what is recorded doesn't change the path.
    """

    def __init__(self, path: FlowPath, rival: EXPRB32, rtol: Any, atol: Any):
        inner = rival.tolerances(rtol, atol)
        dtype = path.problem.dtype
        asarray = lambda c: jtu.tree_map(lambda x: jnp.asarray(x, dtype) if isinstance(x, float) else x, c)
        self._first = path
        self._second = dataclasses.replace(
            path, solver=rival.prepared(*inner), controller=asarray(Predictive(*inner))
        )
        # plain numbers, because they go into checkpoints
        self.memory: dict[str, Any] = {
            "due": _FIRST,  # gradients
            "next": 2 * _EVERY,  # attempted steps
            "rate": 0.0,  # gradients per unit of time that would send the run back
            "since": [0.0, 0],  # time and gradients at the last look
            "changes": [],  # in words
            "second": False,
        }

    @property
    def next(self) -> int:
        """The number of attempted steps after which `review` is to be called."""
        return self.memory["next"]

    def restored(self, memory: dict[str, Any], state: FlowState) -> tuple[FlowPath, FlowState]:
        """Path and form of the state to go on from `memory`; `state` is that of the start."""
        self.memory = memory
        return self._into_second(state, 0.0) if memory["second"] else (self._first, state)

    def review(self, state: FlowState) -> tuple[FlowPath, FlowState]:
        """The path with which to go on, and its state."""
        memory = self.memory
        seen = (state.t_before, state.t, state.steps, state.solver_state.gradients)
        t_before, t, steps, gradients = (x.item() for x in jax.device_get(seen))
        memory["next"] = steps + max(_EVERY, steps // 8)
        if memory["second"]:
            rate = (gradients - memory["since"][1]) / max(t - memory["since"][0], 1e-300)
            memory["since"] = [t, gradients]
            return self._back(state) if rate > memory["rate"] else (self._second, state)
        if gradients < memory["due"] or t <= t_before:
            return self._first, state
        step, stages = t - t_before, int(state.solver_state.stages)
        found = self._look(state, step, stages / step / _GAIN, gradients // _SHARE)
        spent = found.spent if isinstance(found, Forecast) else found
        state = eqx.tree_at(lambda s: s.solver_state.gradients, state, replace_fn=lambda n: n + spent)
        memory["due"] = gradients + spent * (1 + _APART)
        if not isinstance(found, Forecast):
            return self._first, state
        memory["second"], memory["rate"], memory["since"] = True, stages / step, [t, gradients + spent]
        memory["changes"].append(
            f"from t = {t:.4g} EXPRB32, because a step of {found.step:.3g} would take {found.cost} gradients "
            f"and one of {step:.3g} took {stages}"
        )
        return self._into_second(state, found.step)

    def _look(self, state: FlowState, step: float, rate: float, most: int) -> Forecast | int:
        solver = self._second.solver
        assert isinstance(solver, EXPRB32)
        y, f = (np.asarray(ravel_pytree(x)[0]) for x in (state.params, state.solver_state.f0))
        field = lambda y: np.asarray(_field(self._first, state.t, y))
        return forecast(field, y, f, solver, step, rate=rate, most=min(most, solver.max_basis))

    def _into_second(self, state: FlowState, step: float) -> tuple[FlowPath, FlowState]:
        before = state.solver_state
        solver = self._second.solver
        assert isinstance(solver, EXPRB32)
        after = solver.begun(state.params, before.f0, before.gradients)
        return self._second, self._entered(state, after, jnp.minimum(state.t + step, self._second.t_max))

    def _back(self, state: FlowState) -> tuple[FlowPath, FlowState]:
        here = eqx.tree_at(lambda p: p.problem.params, self._first, state.params)
        fresh = here.start()
        gradients = state.solver_state.gradients + fresh.solver_state.gradients + int(here.dt0 is None)
        after = eqx.tree_at(
            lambda s: (s.gradients, s.radius.time),
            fresh.solver_state,
            (gradients, jnp.asarray(state.t, fresh.solver_state.radius.time.dtype)),
        )
        self.memory["second"], self.memory["due"] = False, 2 * int(gradients)
        self.memory["changes"].append(f"from t = {float(state.t):.4g} again RKC3, because EXPRB32 became dearer")
        t_next = jnp.minimum(state.t + fresh.t_next, self._first.t_max)
        return self._first, self._entered(state, after, t_next)

    def _entered(self, state: FlowState, solver_state: Any, t_next: Array) -> FlowState:
        # the controller knows no error of the other method
        fresh = jtu.tree_map(jnp.zeros_like, state.controller_state)
        which = lambda s: (s.solver_state, s.controller_state, s.t_next)
        return eqx.tree_at(which, state, (solver_state, fresh, t_next))

    def told(self, stats: dict[str, Any]) -> dict[str, Any]:
        """The statistics, with all solvers and the reasons of each change."""
        changes = self.memory["changes"]
        names = [type((self._second if i % 2 else self._first).solver).__name__ for i in range(len(changes) + 1)]
        reason = "; ".join([stats["solver_reason"], *changes])
        return stats | {"solver": ", then ".join(names), "solver_reason": reason}


@eqx.filter_jit
def _field(path: FlowPath, t: Array, y: np.ndarray) -> Array:
    _, unravel = ravel_pytree(path.problem.params)
    return ravel_pytree(path.clock.term(path.flow, path.problem).vf(t, unravel(y), None))[0]
