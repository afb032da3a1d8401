"""From one solver to another in the midst of a run, by what they cost per unit of time."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow import _tree
from gflow._flow_path import FlowPath, FlowState
from gflow._path import AbstractSwitch
from gflow.solvers import EXPRB42, RKC3
from gflow.solvers._kinks import has_kinks

_EVERY = 16  # attempted steps, at the least, over which a cost is measured
_DEARER = 1.3  # so much dearer than what it replaced RKC3 must be for the run to change back

# From EXPRB42
_FEW = 12.0  # gradients per step, below which Krylov spaces are too small to know the radius from
_STEPS = 1.8  # steps of RKC3 that are together as accurate as one of EXPRB42
_FULL = 0.5  # of the largest Krylov space: with so many gradients per step many of the spaces are full
_WORTH = 100  # gradients that a change must save, because the first steps of RKC3, short ones, cost so many
_BEGIN = 0.3  # of EXPRB42's step, for the first one of RKC3, which has order two

# From Tsit5
_UNSTABLE = 2.5  # hρ from which on stability limits its steps, and not the error; it is stable up to 3.3
_LONG = 10_000  # gradients ahead for which compiling RKC3 pays; before, it takes as long as they do
_RARELY = 64  # attempted steps between two reviews, at the least: many lie ahead, and each of them is cheap


class Switch(AbstractSwitch):
    """A run begins with one solver and goes on with `gflow.solvers.RKC3` where that pays.

    A stabilised solver needs `s` = √(1 + 1.5 · 1.2 hρ) stages for a step `h`, ρ the spectral radius, which
    both solvers that a run may begin with give for nothing.

    `gflow.solvers.EXPRB42` has it from the last Krylov space. Where an accepted step takes more gradients,
    rejections included, than equally accurate steps of RKC3 would, which are shorter, no few eigenvalues
    stand apart. Then the run changes, if enough lies ahead to pay for the first steps of RKC3. Where many
    Krylov spaces are full it is they that limit the steps, and not the error, so that those of RKC3 need not
    be shorter.

    `diffrax.Tsit5` has it from its last two stages, which lie close to each other in all but stiff directions
    (Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.2). Where hρ shows that
    stability limits the step, RKC3 takes it with half of the gradients, and longer ones with still less. Not
    so where the loss has kinks, which it resolves with tiny steps; they are looked for only then.

    RKC3 is compiled only when its turn comes. If it then costs a third more per unit of time than what it
    replaced, the run changes back. When this is asked depends on the steps alone, so that what is recorded
    doesn't change the path.
    """

    def __init__(self, path: FlowPath, rival: FlowPath):
        self._paths = path, rival
        self.memory: dict[str, Any] = {  # plain numbers, because they go into checkpoints
            "next": self._least(path),
            "before": [0.0, 0, 0, 0],  # time, steps, rejected ones and gradients at the last review
            "rate": 0.0,  # gradients per unit of time before the last change
            "uncounted": 0,  # gradients that the present solver doesn't know of
            "changes": [],  # in words
        }

    def _path_of(self, memory: dict[str, Any]) -> FlowPath:
        return self._paths[len(memory["changes"]) % 2]

    @staticmethod
    def _least(path: FlowPath) -> int:
        """The least number of attempted steps between two reviews."""
        return _RARELY if isinstance(path.solver, diffrax.Tsit5) else _EVERY

    @property
    def next(self) -> int:
        """The number of attempted steps after which `review` is to be called."""
        return self.memory["next"]

    def restored(self, memory: dict[str, Any], state: FlowState) -> tuple[FlowPath, FlowState]:
        """Path and form of the state to go on from `memory`; `state` is that of the start."""
        self.memory = memory
        path = self._path_of(memory)
        return path, state if path is self._paths[0] else _entered(path, self._paths[0], state, 0.0, 0)

    def review(self, state: FlowState) -> tuple[FlowPath, FlowState]:
        """The path with which to go on, and its state."""
        memory, state = self._judged(state)
        path = self._path_of(memory)
        self.memory = memory  # last, because Ctrl-C may come before, and a checkpoint holds both
        return path, state

    def _judged(self, state: FlowState) -> tuple[dict[str, Any], FlowState]:
        """What is known after a review, and the state, of the other solver if the run is to change."""
        memory, path = dict(self.memory), self._path_of(self.memory)
        now = [*(x.item() for x in jax.device_get((state.t, state.steps, state.rejected)))]
        now.append(path.spent(state) + memory["uncounted"])
        time, steps, rejected, gradients = (a - b for a, b in zip(now, memory["before"], strict=True))
        memory["next"], memory["before"] = now[1] + max(self._least(path), now[1] // 8), now
        begins = memory.pop("begins", False)  # the first steps are no measure
        if begins or steps == rejected:
            return memory, state
        first = path is self._paths[0]
        step, cost = time / (steps - rejected), gradients / (steps - rejected)
        if first:
            ahead = (float(path.t_max) - now[0]) / step  # steps
            judge = _against_krylov if isinstance(path.solver, EXPRB42) else _against_explicit
            found = judge(path, state, step, cost, ahead)
        elif gradients / time >= _DEARER * memory["rate"]:
            name = type(self._paths[0].solver).__name__
            found = f"{name} again, because RKC3 became dearer than that was", step
        else:
            found = None
        if found is None:
            return memory, state
        why, step = found
        memory["rate"] = gradients / time
        memory["begins"] = True
        # RKC3 first has to wear off what the other solver left in stiff directions, with short steps; and
        # what didn't pay isn't tried again soon
        memory["next"] = now[1] + 2 * _EVERY if first else 2 * now[1]
        memory["changes"] = [*memory["changes"], f"from t = {now[0]:.4g} {why}"]
        other = self._path_of(memory)
        after = _entered(other, path, state, step, now[3])
        memory["uncounted"] = now[3] - other.spent(after)
        return memory, after

    def told(self, stats: dict[str, Any]) -> dict[str, Any]:
        """The statistics, with all solvers and the reasons of each change."""
        changes = self.memory["changes"]
        names = [type(self._paths[i % 2].solver).__name__ for i in range(len(changes) + 1)]
        reason = "; ".join([stats["solver_reason"], *changes])
        gradients = stats["gradients"] + self.memory["uncounted"]
        return stats | {"solver": ", then ".join(names), "solver_reason": reason, "gradients": gradients}


Found = tuple[str, float] | None  # why to change to RKC3, and its first step


def _against_krylov(path: FlowPath, state: FlowState, step: float, cost: float, ahead: float) -> Found:
    """Whether RKC3 would take fewer gradients than Krylov spaces do, which cost so many per step."""
    assert isinstance(path.solver, EXPRB42)
    if not np.all(np.isfinite(state.solver_state.small)):  # the last attempt met a NaN
        return None
    # where full spaces limit the step, and not the error, RKC3's can be as long
    shorter = _STEPS if cost < _FULL * path.solver.max_basis else 1.0
    stages = float(np.sqrt(1 + 1.84 * step / shorter * _ritz(state)[0]))
    if cost < _FEW or not ahead * (cost - shorter * stages) >= _WORTH:
        return None
    why = f"RKC3, because steps of about {step:.3g} took {cost:.3g} gradients, for {stages:.3g} stages"
    return why, _BEGIN * step


def _against_explicit(path: FlowPath, state: FlowState, step: float, cost: float, ahead: float) -> Found:
    """Whether stability limits the steps of an explicit method, and many lie ahead."""
    if ahead * cost < _LONG:
        return None
    radius = float(_of_stages(path.solver, state)[0])
    if not step * radius >= _UNSTABLE or has_kinks(path.problem.value, path.problem.params):
        return None
    limit = f"steps of about {step:.3g} times the sharpness {radius:.3g} are {step * radius:.2g}"
    return f"RKC3, because {limit}, where stability limits them", step


def _ritz(state: FlowState) -> tuple[float, Array]:
    """The largest Ritz value of the last Krylov space, and its vector."""
    known = state.solver_state
    values, vectors = np.linalg.eigh(np.asarray(known.small))  # zero beyond the space
    largest = int(np.argmax(np.abs(values)))
    weights = vectors[:, largest].astype(known.first.dtype)
    vector = jnp.tensordot(weights, known.first, axes=1, precision="highest")
    return float(np.abs(values[largest])), vector


@eqx.filter_jit
def _of_stages(solver: diffrax.AbstractSolver, state: FlowState) -> tuple[Array, Array]:
    """The spectral radius by the last two stages of the last step, and the unit vector between them."""
    assert isinstance(solver, diffrax.Tsit5)
    *_, before, last = solver.tableau.a_lower
    slopes = state.dense["k"]  # times the step
    stage = lambda row: jnp.tensordot(
        row.astype(slopes.dtype), slopes[: len(row)], axes=1, precision="highest"
    )
    apart = stage(last) - stage(before)
    length = _tree.norm(apart)
    length = jnp.where(length > 0, length, 1)
    step = state.t - state.t_before
    return _tree.norm(slopes[-1] - slopes[-2]) / length / jnp.where(step > 0, step, 1), apart / length


def _entered(path: FlowPath, left: FlowPath, state: FlowState, step: float, gradients: int) -> FlowState:
    """The state of `path` where that of the path that is `left` stands, after so many gradients."""
    before, solver, count = state.solver_state, path.solver, jnp.asarray(gradients, jnp.int32)
    if isinstance(solver, EXPRB42):
        after = solver.begun(state.params, before.f0, count)
    elif isinstance(solver, RKC3) and isinstance(left.solver, EXPRB42):
        after = solver.begun(state.t, state.params, before.f0, count, *_ritz(state))
    elif isinstance(solver, RKC3):
        _, f0 = before
        after = solver.begun(state.t, state.params, f0, count, *_of_stages(left.solver, state))
    else:
        after = jnp.array(False), before.f0  # as after a step, because the field is known
    return path.entered(state, after, step)
