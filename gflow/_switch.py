"""From one solver to another in the midst of a run, by what they cost per unit of time."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from gflow import _tree
from gflow._attempt import gradients as gradients_of
from gflow._flow_path import FlowPath, FlowState
from gflow._path import AbstractSwitch
from gflow._problem import Problem
from gflow.solvers import EXPRB42, RKC3
from gflow.solvers._kinks import has_kinks

# From EXPRB42 to RKC3
_EVERY = 16  # attempted steps, at the least, over which a cost is measured
_FULL = 0.5  # of the largest Krylov space, used by a step that is close to one that was too long for it
_CLOSE = 3.0  # times a step
_TRIAL = 2500  # gradients ahead for which it pays to try how long the steps of RKC3 are
_BEGIN = 0.3  # of EXPRB42's step, for the first one of RKC3, which has order two
_DEARER = 1.3  # so much dearer than EXPRB42 was RKC3 must be for the run to change back

# From Tsit5 to RKC3
_RARELY = 64  # attempted steps, at the least, between two reviews: many lie ahead, and each is cheap
_UNSTABLE = 2.5  # hρ from which on stability limits the steps, and not the error
_STABLE = 3.3  # hρ up to which they are stable
_HALF = 0.5  # of the gradients of Tsit5 RKC3 may take, because each of its own costs more time
_LONG = 2e6  # microseconds of gradients ahead, by `_microseconds`, for which compiling RKC3 pays


class Switch(AbstractSwitch):
    """A run begins with one solver and goes on with `gflow.solvers.RKC3` where that pays.

    With `gflow.solvers.EXPRB42` that is where no few eigenvalues stand apart, so that its Krylov spaces are
    full: they limit its steps, and not the error, which tells nothing then of how long steps may be. RKC3 is
    tried, if so much lies ahead that this pays. If it costs a third more per unit of time than EXPRB42 did,
    the run changes back.

    `diffrax.Tsit5` tells hρ, a step times the spectral radius, by its last two stages, which lie close to
    each other in all but stiff directions (Hairer and Wanner, Solving Ordinary Differential Equations II,
    section IV.2). Where that shows that stability limits the step, RKC3 takes longer ones for less. The run
    changes if so much lies ahead that this pays for compiling RKC3, and the loss has no kinks, which RKC3
    resolves with tiny steps; and back where RKC3 takes more than half of the gradients with which Tsit5 would
    be stable at the radius there.

    RKC3 is compiled only when its turn comes. When this is asked depends on the steps alone, so that what is
    recorded doesn't change the path.
    """

    def __init__(self, path: FlowPath, rival: FlowPath):
        self._paths = path, rival
        self._explicit = isinstance(path.solver, diffrax.Tsit5)
        self._kinked: bool | None = None  # looked for only where it decides
        self.memory: dict[str, Any] = {  # plain numbers, because they go into checkpoints
            "next": _RARELY if self._explicit else _EVERY,
            "before": [0.0, 0, 0, 0],  # time, steps, rejected ones and gradients at the last review
            "rate": 0.0,  # gradients per unit of time before the last change
            "uncounted": [0, 0],  # gradients, all and for the radius, that this solver doesn't know of
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
        return path, state if path is self._paths[0] else _entered(path, self._paths[0], state, 0.0, 0)

    def review(self, state: FlowState) -> tuple[FlowPath, FlowState]:
        """The path with which to go on, and its state."""
        memory, path = dict(self.memory), self._path_of(self.memory)
        spent, radius = _spent(path, state)
        now = [x.item() for x in jax.device_get((state.t, state.steps, state.rejected))]
        now.append(spent + memory["uncounted"][0])
        memory["before"], steps = now, now[1]
        rarely = self._explicit and path is self._paths[0]
        memory["next"] = steps + max(_RARELY if rarely else _EVERY, steps // 8)
        begins = memory.pop("begins", False)  # the first steps are no measure
        found = None if begins else self._judged(path, state, now)
        if found is not None:
            why, step, memory["rate"] = found
            memory["changes"] = [*memory["changes"], f"from t = {now[0]:.4g} {why}"]
            memory["begins"] = True
            other = self._path_of(memory)
            # RKC3 first has to wear off what the other left in stiff directions, with short steps; and what
            # didn't pay isn't tried again soon
            memory["next"] = 2 * steps if other is self._paths[0] else steps + 2 * _EVERY
            state = _entered(other, path, state, step, now[3])
            memory["uncounted"] = [now[3] - _spent(other, state)[0], memory["uncounted"][1] + radius]
            path = other
        self.memory = memory  # last, because Ctrl-C may come before, and a checkpoint holds both
        return path, state

    def _judged(self, path: FlowPath, state: FlowState, now: list[Any]) -> tuple[str, float, float] | None:
        """If the run is to change: why, the first step of the other solver, and the rate of this one."""
        time, steps, rejected, gradients = (a - b for a, b in zip(now, self.memory["before"], strict=True))
        if steps == rejected:
            return None
        step, rate = time / (steps - rejected), gradients / time
        if path is self._paths[0]:
            left = float(path.t_max) - now[0]
            left = left if np.isfinite(left) else now[0]  # without a horizon, as much as there was
            if self._explicit:
                found = self._against_explicit(path, state, left * rate)
            else:
                found = self._against_krylov(path, state, steps / (steps - rejected), left)
            return None if found is None else (*found, rate)
        limit = _DEARER * self.memory["rate"]
        if self._explicit:
            per_step, _ = gradients_of(self._paths[0].solver)
            assert per_step is not None
            radius = float(state.solver_state.radius.value)
            limit, step = _HALF * per_step / _STABLE * radius, min(step, _UNSTABLE / max(radius, 1e-30))
        if rate < limit:
            return None
        name = type(self._paths[0].solver).__name__
        return f"{name} again, because RKC3 became dearer than that is", step, rate

    def _against_krylov(
        self, path: FlowPath, state: FlowState, attempts: float, left: float
    ) -> tuple[str, float] | None:
        """Whether full Krylov spaces limit the steps, each after so many attempts."""
        assert isinstance(path.solver, EXPRB42)
        known, last = state.solver_state, float(state.t - state.t_before)
        if not np.all(np.isfinite(known.small)):  # the last attempt met a NaN
            return None
        size, longest = int(known.basis_size), float(state.controller_state.longest)
        ahead = left / last * attempts * (size + 2)
        if longest > _CLOSE * last or size < _FULL * path.solver.max_basis or ahead < _TRIAL:
            return None
        why = f"RKC3, because Krylov spaces, of {size} vectors for a step of {last:.3g}, limit the steps"
        return why, _BEGIN * last

    def _against_explicit(self, path: FlowPath, state: FlowState, left: float) -> tuple[str, float] | None:
        """Whether stability limits the steps of an explicit method, and many gradients are left to make."""
        if left * _microseconds(path.problem) < _LONG:
            return None
        last, radius = float(state.t - state.t_before), float(_of_stages(path.solver, state)[0])
        if not last * radius >= _UNSTABLE:
            return None
        if self._kinked is None:
            self._kinked = has_kinks(path.problem.value, path.problem.params)
        if self._kinked:
            return None
        limit = f"a step of {last:.3g} times the sharpness {radius:.3g} was {last * radius:.2g}"
        return f"RKC3, because {limit}, where stability limits it", last

    def told(self, stats: dict[str, Any]) -> dict[str, Any]:
        """The statistics, with all solvers and the reasons of each change."""
        changes, (gradients, radius) = self.memory["changes"], self.memory["uncounted"]
        names = [type(self._paths[i % 2].solver).__name__ for i in range(len(changes) + 1)]
        return stats | {
            "solver": ", then ".join(names),
            "solver_reason": "; ".join([stats["solver_reason"], *changes]),
            "gradients": stats["gradients"] + gradients,
            "radius_gradients": stats["radius_gradients"] + radius,
        }


def _spent(path: FlowPath, state: FlowState) -> tuple[int, int]:
    """Gradients that the solver knows of, and those of them for the radius."""
    spent = path.spent(state)
    assert spent is not None  # both kinds of solver tell
    return spent, int(getattr(state.solver_state, "radius_gradients", 0))


def _microseconds(problem: Problem) -> float:
    """About what a gradient takes on a CPU, by the size of the problem: a clock would not be repeatable."""
    lengths = [leaf.shape[0] for leaf in jtu.tree_leaves(problem.data) if leaf.ndim]
    return 1 + 1e-3 * problem.size * max(lengths, default=1)


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
    radius = _tree.norm(slopes[-1] - slopes[-2]) / length / jnp.where(step > 0, step, 1)
    return radius, apart / length


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
