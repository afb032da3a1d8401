"""From one solver to another in the midst of a run, by what they cost per unit of time."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from gflow._flow_path import FlowPath, FlowState
from gflow._path import AbstractSwitch
from gflow.solvers import EXPRB42, RKC3, Predictive

_EVERY = 8  # attempted steps, at the least, over which a cost is measured
_FEW = 7.0  # gradients per step below which Krylov spaces are small, and the radius is not known from them
_STEPS = 1.15  # of RKC3 for one of EXPRB42, at the least
_STIFF = 10  # stages of RKC3 with which EXPRB42 is tried again if its spaces were small, then twice as many
_DEARER = 1.3  # so much dearer than what it replaced RKC3 must be for the run to change back
_WORTH = 160  # gradients that must lie ahead, because the first steps of RKC3, short ones, cost some forty
_MANY = 400  # steps of EXPRB42 after which RKC3 is tried in any case, and then twice as many
_BEGIN = 0.3  # of EXPRB42's step, for the first one of RKC3, which has order two


class Switch(AbstractSwitch):
    """A run begins with `gflow.solvers.EXPRB42` and goes on with `gflow.solvers.RKC3` where that pays.

    A stabilised solver needs `s` = √(1 + 1.5 · 1.2 hρ) stages for a step `h`; ρ is the radius of the last
    Krylov space. Where an accepted step of EXPRB42 takes more gradients than the somewhat shorter steps of
    RKC3 would, rejections included, no few eigenvalues stand apart, and the run changes to RKC3, which is
    compiled only then, unless little of it lies ahead. Spaces of a few vectors tell too little of the radius
    for that. If RKC3 then costs a third more per unit of time than EXPRB42 did, the run changes back.

    After many steps RKC3 is tried in any case: where the steps of EXPRB42 are short because what its Krylov
    spaces leave out is stiff, its cost per step doesn't show it. If the spaces were small then, the run also
    changes back where RKC3 has come to need many stages: the flow has become stiff, and it may be so in a few
    directions.

    When this is asked depends on the steps alone, so that what is recorded doesn't change the path.
    """

    def __init__(self, path: FlowPath, rival: RKC3, rtol: Any, atol: Any):
        inner = rival.tolerances(rtol, atol)
        controller = eqx.tree_at(lambda c: (c.rtol, c.atol), path.controller, tuple(map(jnp.asarray, inner)))
        assert isinstance(path.solver, EXPRB42) and isinstance(controller, Predictive)
        self._paths = path, dataclasses.replace(path, solver=rival.prepared(*inner), controller=controller)
        self.memory: dict[str, Any] = {  # plain numbers, because they go into checkpoints
            "next": _EVERY,
            "due": _EVERY,  # the number of steps after which costs are compared
            "before": [0.0, 0, 0, 0],  # time, steps, rejected ones and gradients at the last review
            "try": _MANY,  # steps after which RKC3 is tried
            "rate": 0.0,  # gradients per unit of time before the last change
            "small": False,  # whether Krylov spaces were small when RKC3 took over
            "stiff": _STIFF,  # stages with which EXPRB42 is tried again then
            "changes": [],  # in words
        }

    def _path_of(self, memory: dict[str, Any]) -> FlowPath:
        return self._paths[len(memory["changes"]) % 2]

    @property
    def next(self) -> int:
        """The number of attempted steps after which `review` is to be called."""
        return self.memory["next"]

    def restored(self, memory: dict[str, Any], state: FlowState) -> tuple[FlowPath, FlowState]:
        """Path and form of the state to go on from `memory`; `state` is that of the start."""
        self.memory = memory
        path = self._path_of(memory)
        return path, state if path is self._paths[0] else _entered(path, state, 0.0)

    def review(self, state: FlowState) -> tuple[FlowPath, FlowState]:
        """The path with which to go on, and its state."""
        memory, step = self._judged(state)
        path = self._path_of(memory)
        if step is not None:
            state = _entered(path, state, step)
        self.memory = memory  # last, because Ctrl-C may come before, and a checkpoint holds both
        return path, state

    def _judged(self, state: FlowState) -> tuple[dict[str, Any], float | None]:
        """What is known after a review, and the first step of the other solver, if the run is to change."""
        memory, krylov = dict(self.memory), isinstance(self._path_of(self.memory).solver, EXPRB42)
        seen = (state.t, state.steps, state.rejected, state.solver_state.gradients)
        now = [x.item() for x in jax.device_get(seen)]
        time, steps, rejected, gradients = (a - b for a, b in zip(now, memory["before"], strict=True))
        watched = not krylov and memory["small"]  # costs are compared when due, stages are watched in between
        stages = int(state.solver_state.stages) if watched else 0
        stiff, due = stages >= memory["stiff"], now[1] >= memory["due"]
        if due:
            memory["due"], memory["before"] = now[1] + max(_EVERY, now[1] // 8), now
        memory["next"] = min(memory["due"], now[1] + _EVERY) if watched else memory["due"]
        if steps == rejected or not (due or stiff):
            return memory, None
        begins = memory.pop("begins", False)
        step, cost = time / (steps - rejected), gradients / (steps - rejected)
        if krylov:
            if begins or not np.all(np.isfinite(state.solver_state.small)):  # the last attempt met a NaN
                return memory, None
            stages = float(np.sqrt(1 + 1.84 * step / _STEPS * _radius(state)[0]))
            ahead = cost / step * (float(self._paths[0].t_max) - now[0])
            if cost >= max(_FEW, _STEPS * stages) and ahead >= _WORTH:
                why = f"steps of about {step:.3g} took {cost:.3g} gradients, for {stages:.3g} stages"
            elif now[1] >= memory["try"] and ahead >= _WORTH:
                why = f"{now[1]} steps had been made, and a trial costs little beside them"
            else:
                return memory, None
            why, step = f"RKC3, because {why}", _BEGIN * step
            memory["try"] = 2 * now[1] + _MANY
            memory["small"] = bool(cost < _FEW)
        elif not begins and gradients / time >= _DEARER * memory["rate"]:
            why = "EXPRB42 again, because RKC3 became dearer than that was"
        elif stiff:
            memory["stiff"] *= 2
            why = f"EXPRB42 again, because RKC3 has come to take {stages} stages"
        else:
            return memory, None
        memory["rate"] = gradients / time
        memory["begins"], memory["before"] = True, now  # the first steps are no measure
        # RKC3 first has to wear off what Krylov spaces left in stiff directions, with short steps
        memory["next"] = memory["due"] = now[1] + (4 if krylov else 2) * _EVERY
        memory["changes"] = [*memory["changes"], f"from t = {now[0]:.4g} {why}"]
        return memory, step

    def told(self, stats: dict[str, Any]) -> dict[str, Any]:
        """The statistics, with all solvers and the reasons of each change."""
        changes = self.memory["changes"]
        names = [type(self._paths[i % 2].solver).__name__ for i in range(len(changes) + 1)]
        reason = "; ".join([stats["solver_reason"], *changes])
        return stats | {"solver": ", then ".join(names), "solver_reason": reason}


def _radius(state: FlowState) -> tuple[float, np.ndarray]:
    """The largest Ritz value of the last Krylov space, and its vector in the basis."""
    known = state.solver_state
    values, vectors = np.linalg.eigh(np.asarray(known.small))  # zero beyond the space
    largest = int(np.argmax(np.abs(values)))
    return float(np.abs(values[largest])), vectors[:, largest]


def _entered(path: FlowPath, state: FlowState, step: float) -> FlowState:
    """The state of `path` where that of a path with the other solver stands."""
    before, solver = state.solver_state, path.solver
    if isinstance(solver, EXPRB42):
        after = solver.begun(state.params, before.f0, before.gradients)
    else:
        assert isinstance(solver, RKC3)
        value, weights = _radius(state)
        along = lambda v: jnp.tensordot(weights.astype(v.dtype), v, axes=1, precision="highest")
        direction = jtu.tree_map(along, before.first)
        after = solver.begun(state.t, state.params, before.f0, before.gradients, value, direction)
    # the controller knows no error of this method
    fresh = jtu.tree_map(jnp.zeros_like, state.controller_state)
    t_next = jnp.minimum(state.t + jnp.asarray(step, state.t.dtype), path.t_max)
    which = lambda s: (s.solver_state, s.controller_state, s.t_next)
    return eqx.tree_at(which, state, (after, fresh, t_next))
