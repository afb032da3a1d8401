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

_EVERY = 16  # attempted steps, at the least, over which a cost is measured
_FEW = 12.0  # gradients per step, below which Krylov spaces are too small to know the radius from
_STEPS = 1.8  # steps of RKC3 that are together as accurate as one of EXPRB42
_FULL = 0.5  # of the largest Krylov space: with so many gradients per step many of the spaces are full
_DEARER = 1.3  # so much dearer than what it replaced RKC3 must be for the run to change back
_WORTH = 100  # gradients that a change must save, because the first steps of RKC3, short ones, cost so many
_BEGIN = 0.3  # of EXPRB42's step, for the first one of RKC3, which has order two


class Switch(AbstractSwitch):
    """A run begins with `gflow.solvers.EXPRB42` and goes on with `gflow.solvers.RKC3` where that pays.

    A stabilised solver needs `s` = √(1 + 1.5 · 1.2 hρ) stages for a step `h`; ρ is the radius of the last
    Krylov space. Where an accepted step of EXPRB42 takes more gradients, rejections included, than equally
    accurate steps of RKC3 would, which are shorter, no few eigenvalues stand apart. Then the run changes to
    RKC3, which is compiled only then, if enough lies ahead to pay for its first steps. Where many Krylov
    spaces are full it is they that limit the steps, and not the error, so that those of RKC3 need not be
    shorter. If RKC3 then costs a third more per unit of time than EXPRB42 did, the run changes back.

    When this is asked depends on the steps alone, so that what is recorded doesn't change the path.
    """

    def __init__(self, path: FlowPath, rival: RKC3, rtol: Any, atol: Any):
        inner = rival.tolerances(rtol, atol)
        controller = eqx.tree_at(lambda c: (c.rtol, c.atol), path.controller, tuple(map(jnp.asarray, inner)))
        assert isinstance(path.solver, EXPRB42) and isinstance(controller, Predictive)
        self._largest = path.solver.max_basis
        self._paths = path, dataclasses.replace(path, solver=rival.prepared(*inner), controller=controller)
        self.memory: dict[str, Any] = {  # plain numbers, because they go into checkpoints
            "next": _EVERY,
            "before": [0.0, 0, 0, 0],  # time, steps, rejected ones and gradients at the last review
            "rate": 0.0,  # gradients per unit of time before the last change
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
        memory["next"], memory["before"] = now[1] + max(_EVERY, now[1] // 8), now
        begins = memory.pop("begins", False)  # the first steps are no measure
        if begins or steps == rejected:
            return memory, None
        step, cost = time / (steps - rejected), gradients / (steps - rejected)
        if krylov:
            if not np.all(np.isfinite(state.solver_state.small)):  # the last attempt met a NaN
                return memory, None
            # where full spaces limit the step, and not the error, RKC3's can be as long
            shorter = _STEPS if cost < _FULL * self._largest else 1.0
            stages = float(np.sqrt(1 + 1.84 * step / shorter * _radius(state)[0]))
            ahead = (float(self._paths[0].t_max) - now[0]) / step  # steps
            if cost < _FEW or not ahead * (cost - shorter * stages) >= _WORTH:
                return memory, None
            why = (
                f"RKC3, because steps of about {step:.3g} took {cost:.3g} gradients, for {stages:.3g} stages"
            )
            step *= _BEGIN
        elif gradients / time >= _DEARER * memory["rate"]:
            why = "EXPRB42 again, because RKC3 became dearer than that was"
        else:
            return memory, None
        memory["rate"] = gradients / time
        memory["begins"] = True
        # RKC3 first has to wear off what Krylov spaces left in stiff directions, with short steps
        memory["next"] = now[1] + (2 if krylov else 1) * _EVERY
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
    dense = path.no_dense(state.params, after)  # the last step is over
    t_next = jnp.minimum(state.t + jnp.asarray(step, state.t.dtype), path.t_max)
    which = lambda s: (s.solver_state, s.controller_state, s.t_next, s.dense)
    return eqx.tree_at(which, state, (after, fresh, t_next, dense))
