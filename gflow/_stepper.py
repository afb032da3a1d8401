"""The loop that both verbs share: advance, record, count, detect failure, stop.

A `Path` knows how to move on (compiled, a bounded number of steps per call) and what its parameters
are at a given position. A `Run` drives it from the host: it asks for one record position after the
other, so that records and observables are compiled apart from the steps and can't change them.
"""

import abc
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from tqdm.auto import tqdm

from gflow import _tree
from gflow._checkpoint import Checkpoint
from gflow._problem import Problem
from gflow._trajectory import FlowError, Trajectory
from gflow._watch import Watch
from gflow.observe import AbstractObservable

# Why an `advance` returned before its target; the paths add the words.
RUNNING, STOPPED, NONFINITE, DIVERGED, UNDERFLOW, SOLVER_FAILURE = range(6)


class Position(NamedTuple):
    """Where a path is: what the host needs to know between two calls of `advance`."""

    position: Float[Array, ""] | Int[Array, ""]
    steps: Int[Array, ""]
    code: Int[Array, ""]


class AbstractPath(eqx.Module):
    """A path through parameter space, in compiled pieces. Positions are times or step numbers.

    Its states are PyTrees with the attribute `params`, θ at their position.
    """

    problem: eqx.AbstractVar[Problem]
    watch: eqx.AbstractVar[Watch]

    @abc.abstractmethod
    def start(self) -> PyTree:
        """The state at position 0."""

    @abc.abstractmethod
    def advance(self, state: PyTree, until: Any, budget: Any) -> PyTree:
        """Moves on until `until` is reached or passed, at most `budget` attempted steps."""

    @abc.abstractmethod
    def where(self, state: PyTree) -> Position:
        """The position of `state`."""

    @abc.abstractmethod
    def record(self, state: PyTree, position: float | int) -> tuple[PyTree[Array], Array, Array, int]:
        """θ, loss and gradient norm at `position`, which lies within the last step.

        And the number of gradients that this took.
        """

    @abc.abstractmethod
    def locate(self, state: PyTree) -> tuple[float | int, int]:
        """After STOPPED: the position at which a stop condition held first, and which one."""

    @abc.abstractmethod
    def explain(self, state: PyTree, code: int | None, initial_loss: float) -> tuple[str, str]:
        """Status and reason after a failure with `code`; `None` is for max_steps."""

    @abc.abstractmethod
    def stats(self, state: PyTree) -> dict[str, Any]:
        """Counts of the path itself: solver, steps, rejected, gradients, hvps."""

    @abc.abstractmethod
    def shown(self, state: PyTree) -> dict[str, str]:
        """What the progress bar shows of `state`."""

    @abc.abstractmethod
    def step_losses(self, state: PyTree) -> np.ndarray | None:
        """The loss at each step that `start` or the last `advance` made, if the path keeps it."""

    @abc.abstractmethod
    def doubts(self, records: Mapping[str, np.ndarray]) -> list[str]:
        """Sentences on what in the records may make the result untrustworthy."""


@eqx.filter_jit
def loss_and_gradient_norm(problem: Problem, params: PyTree) -> tuple[Array, Array]:
    """What every record holds."""
    loss, gradient = problem.value_and_gradient(params)
    return loss, _tree.norm(gradient)


@eqx.filter_jit
def _init_observables(observables, problem, params):
    return tuple(item.init(problem, params) for item in observables)


@eqx.filter_jit
def _read_observables(observables, problem, params, states):
    readings = [item.read(problem, params, state) for item, state in zip(observables, states, strict=True)]
    values = {name: value for reading in readings for name, value in reading.values.items()}
    hvps = sum((reading.hvps for reading in readings), jnp.array(0))
    return values, tuple(reading.state for reading in readings), hvps


def check_start(problem: Problem) -> float:
    """The loss at the start; refuses a problem that is not finite there or not deterministic."""
    first, second = (tuple(map(float, loss_and_gradient_norm(problem, problem.params))) for _ in range(2))
    if not np.all(np.isfinite(first)):
        what = "loss" if not np.isfinite(first[0]) else "gradient of the loss"
        raise ValueError(
            f"loss must be finite and differentiable where the run starts, but the {what} is "
            f"{first[0] if what == 'loss' else first[1]} there although parameters and data are finite; "
            "look for log, sqrt or a division at 0 in model and loss, or scale the initialisation."
        )
    same = np.allclose(first, second, rtol=1e-3, atol=0)
    if not same or _trace(problem) != _trace(problem):
        raise ValueError(
            "model must be deterministic, but two evaluations of its loss and gradient at the same "
            f"parameters differ ({first[0]:.9g} and {second[0]:.9g}, or in their random constants); "
            "switch dropout off with equinox.nn.inference_mode, and draw no random numbers in it."
        )
    return first[0]


def _trace(problem: Problem) -> str:
    """The loss as a program with its constants: differs between traces if Python drew them."""
    # an untraced call, so that nothing is taken from a cache
    dynamic, static = eqx.partition(problem, eqx.is_array)
    closed = jax.make_jaxpr(lambda d: eqx.combine(d, static).value(eqx.combine(d, static).params))(dynamic)
    constants = [np.asarray(c).tobytes() for c in closed.consts if eqx.is_array(c)]
    program = re.sub("0x[0-9a-f]+", "", str(closed.jaxpr))  # addresses of functions
    return f"{program} {hash(tuple(constants))}"


class Run:
    """One path being driven and recorded. Iterating over it makes the records, one at a time."""

    def __init__(
        self,
        path: AbstractPath,
        positions: Sequence[float | int],
        *,
        time: Callable[[Any], float],
        times: Sequence[float | int],
        end: float | int,
        observables: tuple[AbstractObservable, ...],
        save_models: bool,
        max_steps: int,
        progress: bool,
        checkpoint: str | os.PathLike | None,
    ):
        self.path = path
        self.positions = positions
        self.time = time
        self.times = times  # of the positions, as asked for: not rounded to the dtype of the run
        self.end = end
        self.observables = observables
        self.save_models = save_models
        self.max_steps = max_steps
        self.progress = progress
        self.t: list[float] = []
        self.records: dict[str, list[Any]] = {}
        self.saved: list[PyTree] = []
        self.status, self.reason = "", ""
        self.record_gradients, self.record_hvps = 0, 0
        self._done = 0  # positions recorded
        self._step_losses: list[np.ndarray] = []
        self._checkpoint = None
        if checkpoint is not None:
            decides = (path, np.asarray(positions), end, observables, save_models)
            self._checkpoint = Checkpoint(checkpoint, decides)
        self._budget = 64
        self._clock = _Clock()

    def __iter__(self) -> Iterator[PyTree[Array]]:
        """Yields the parameters at each record position; stops early if the run does."""
        driving = self._drive()
        while True:
            with self._clock:  # it must not run while another path is driven in between
                try:
                    params = next(driving)
                except StopIteration:
                    return
            yield params

    def _drive(self) -> Iterator[PyTree[Array]]:
        with self._bar() as bar:
            initial_loss = check_start(self.path.problem)
            self.record_gradients += 2
            self._state = self.path.start()
            self._keep_step_losses()
            self._last = self.path.problem.params
            self._observed = _init_observables(self.observables, self.path.problem, self._last)
            self._restore()
            # the horizon comes last even if nothing is recorded there
            targets = [*self.positions]
            if not targets or targets[-1] < self.end:
                targets.append(self.end)
            try:
                while self._done < len(targets):
                    target = targets[self._done]
                    code = self._advance(target, bar)
                    if code != RUNNING:
                        yield from self._finish_early(code, initial_loss)
                        return
                    if self._done == len(self.positions):
                        self._last = self._state.params
                    elif self._record(target, self.times[self._done]):
                        yield self._last
                    else:
                        self.status, self.reason = self.path.explain(self._state, NONFINITE, initial_loss)
                        return
                    self._done += 1
            except KeyboardInterrupt:
                self.interrupt()
                return
            self.status = "success"
            self.reason = f"the horizon t = {self.time(self.end):.6g} was reached"

    def interrupt(self) -> None:
        """Ends the run where it is."""
        self._save()
        here = self._position()
        if self._is_new(here):
            self._record(here, self.time(here))
        self.status = "interrupted"
        self.reason = f"the run was interrupted from the keyboard at t = {self.time(here):.6g}"

    def _position(self) -> float:
        return float(self.path.where(self._state).position)

    def _is_new(self, position: float | int) -> bool:
        """Whether `position` lies beyond the last one recorded."""
        return self._done == 0 or position > self.positions[min(self._done, len(self.positions)) - 1]

    def _advance(self, target: float | int, bar: Any) -> int | None:
        """Moves on to `target` in pieces short enough for Ctrl-C; the code why not, if so."""
        while True:
            position, steps, code = jax.device_get(self.path.where(self._state))
            self._show(bar, float(position))
            if code != RUNNING or position >= target:
                # a stop beyond the target is dealt with when the target has been recorded
                if code == STOPPED and self.path.locate(self._state)[0] > target:
                    return RUNNING
                return int(code)
            if steps >= self.max_steps:
                return None
            budget = min(self._budget, self.max_steps - int(steps))
            began = perf_counter()
            # arrays, because a Python number would be compiled in
            self._state = self.path.advance(self._state, np.asarray(target), np.asarray(budget))
            jax.block_until_ready(self.path.where(self._state))
            self._keep_step_losses()
            if self._checkpoint is not None and self._checkpoint.is_due():
                self._save()
            elapsed = perf_counter() - began
            if elapsed < 0.1:
                self._budget = min(2 * self._budget, 2**20)
            elif elapsed > 0.5:
                self._budget = max(self._budget // 2, 1)

    def _keep_step_losses(self) -> None:
        losses = self.path.step_losses(self._state)
        if losses is not None:
            self._step_losses.append(losses)

    def _finish_early(self, code: int | None, initial_loss: float) -> Iterator[PyTree[Array]]:
        """Records where the path ends before its horizon, and says why it does."""
        if code == STOPPED:
            here, which = self.path.locate(self._state)
            stop = self.path.watch.stops[which]
            level = float(self.path.watch.levels[which])
            self.status = "stopped"
            self.reason = (
                f"{stop.quantity} reached {level:.6g} at t = {self.time(here):.6g} ({type(stop).__name__})"
            )
        else:
            here = self._position()
            self.status, self.reason = self.path.explain(self._state, code, initial_loss)
        if self._is_new(here) and self._record(here, self.time(here)):
            yield self._last

    def _save(self) -> None:
        """Writes the checkpoint, if there is to be one."""
        if self._checkpoint is None:
            return
        header = {
            "done": self._done,
            "t": self.t,
            "names": list(self.records),
            "record_gradients": self.record_gradients,
            "record_hvps": int(self.record_hvps),
        }
        trees = {
            "now": (self._state, self._last, self._observed),
            "step_losses": [np.concatenate(self._step_losses)] if self._step_losses else [],
            "records": [np.stack(jax.device_get(values)) for values in self.records.values()],
            "saved": _stack(self.saved),
        }
        self._checkpoint.write(header, trees)

    def _restore(self) -> None:
        """Goes on from the checkpoint, if there is one."""
        if self._checkpoint is None:
            return
        now = (self._state, self._last, self._observed)
        found = self._checkpoint.read({"now": now}, rows=("step_losses", "records", "saved"))
        if found is None:
            return
        header, trees = found
        self._done, self.t = header["done"], header["t"]
        self.record_gradients, self.record_hvps = header["record_gradients"], header["record_hvps"]
        self._state, self._last, self._observed = trees["now"]
        self._step_losses = trees["step_losses"]
        self.records = {n: list(rows) for n, rows in zip(header["names"], trees["records"], strict=True)}
        if trees["saved"]:
            structure = jtu.tree_structure(self._last)
            rows = zip(*map(jnp.asarray, trees["saved"]), strict=True)
            self.saved = [jtu.tree_unflatten(structure, leaves) for leaves in rows]

    def _record(self, position: float | int, t: float) -> bool:
        """Records at `position`, unless loss or gradient are not finite there."""
        params, loss, gradient_norm, gradients = self.path.record(self._state, position)
        self.record_gradients += gradients
        if not np.all(np.isfinite(jax.device_get((loss, gradient_norm)))):
            return False
        self._last = params
        values, hvps = {}, 0
        if self.observables:
            values, self._observed, hvps = _read_observables(
                self.observables, self.path.problem, params, self._observed
            )
        self.t.append(t)
        for name, value in {"loss": loss, "gradient_norm": gradient_norm, **values}.items():
            self.records.setdefault(name, []).append(value)
        self.record_hvps += hvps
        if self.save_models:
            self.saved.append(params)
        return True

    def trajectory(self, throw: bool) -> Trajectory:
        """What was recorded. Raises `FlowError` with it if the run failed and `throw` is true."""
        records = {
            name: np.asarray(np.stack(jax.device_get(values))) for name, values in self.records.items()
        }
        path = self.path
        models = None
        if self.saved:
            models = path.problem.model(_stack(self.saved))
        stats = path.stats(self._state)
        hvps = int(self.record_hvps)
        if stats["gradients"] is not None:
            stats["gradients"] += self.record_gradients
        stats["hvps"] += hvps
        stats |= {"record_gradients": self.record_gradients, "record_hvps": hvps}
        stats |= {"seconds": self._clock.seconds, "compile_seconds": self._clock.compile_seconds}
        found = path.doubts(records) if self.status in ("success", "stopped") else []
        result = Trajectory(
            t=np.asarray(self.t, dtype=np.float64),
            records=records,
            model=path.problem.model(self._last),
            models=models,
            step_loss=np.concatenate(self._step_losses) if self._step_losses else None,
            status=self.status,
            reason=self.reason,
            warnings=tuple(found),
            stats=stats,
        )
        for sentence in found:
            warnings.warn(sentence, stacklevel=3)
        if throw and not result.ok and result.status != "interrupted":
            raise FlowError(result)
        return result

    def _bar(self) -> tqdm:
        total = self.time(self.end)
        layout = "{percentage:3.0f}%|{bar}| t = {n:.4g}/{total:.4g} [{elapsed}<{remaining}{postfix}]"
        return tqdm(total=total, disable=not self.progress, bar_format=layout)

    def _show(self, bar: Any, position: float) -> None:
        if not self.progress:
            return
        shown = self.path.shown(self._state)
        if self.t:
            shown = {"loss": f"{float(self.records['loss'][-1]):.4g}"} | shown
        bar.set_postfix(shown, refresh=False)
        bar.update(self.time(position) - bar.n)


def _stack(trees: Sequence[PyTree[Array]]) -> PyTree[Array]:
    return jtu.tree_map(lambda *leaves: jnp.stack(leaves), *trees) if trees else []


class _Clock:
    """Wall time of a block, and the part of it in which JAX traced and compiled."""

    def __init__(self):
        self.seconds = 0.0
        self.compile_seconds = 0.0

    def _listen(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self.compile_seconds += duration_secs

    def __enter__(self):
        self._began = perf_counter()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_):
        self.seconds += perf_counter() - self._began
        jax.monitoring.unregister_event_duration_listener(self._listen)
