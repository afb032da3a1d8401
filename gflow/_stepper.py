"""The loop that both verbs share: advance, record, count, detect failure, stop.

A `Run` drives a path from the host: it asks for one record position after the other, so that records and
observables are compiled apart from the steps and can't change them.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from gflow._checkpoint import Checkpoint, program
from gflow._errors import message_of
from gflow._host import Stopwatch, adapted, progress_bar
from gflow._path import NONFINITE, RUNNING, STOPPED, AbstractPath, AbstractSwitch
from gflow._repeat import Repeat
from gflow._start_check import check_start
from gflow._trajectory import FlowError, Trajectory
from gflow.observe import OWN, RESERVED, AbstractObservable, AbstractStepObservable, Step


@eqx.filter_jit
def init_observables(observables, problem, params):
    """The observables' states before the first record."""
    return tuple(item.init(problem, params) for item in observables)


@eqx.filter_jit
def read_observables(observables, problem, params, states, step=None):
    """Named values, states for the next record, HVPs spent, and whether each is to be trusted."""
    readings = [
        item.read(problem, params, state)
        if step is None or not isinstance(item, AbstractStepObservable)
        else item.read_step(problem, step, state)
        for item, state in zip(observables, states, strict=True)
    ]
    values = {name: value for reading in readings for name, value in reading.values.items()}
    hvps = sum((reading.hvps for reading in readings), jnp.array(0))
    names = [name for reading in readings for name in reading.values]
    if len({*names, *OWN}) < len(names) + len(OWN):
        raise ValueError(
            f"observe records {', '.join(sorted(names))}, of which two are the same or what a trajectory "
            "records anyway; give each observable its own name."
        )
    trusted = {
        f"{item.name} {reading.doubt}": reading.trusted
        for item, reading in zip(observables, readings, strict=True)
    }
    return values, tuple(reading.state for reading in readings), hvps, trusted


def step_to_read(observables: Sequence[AbstractObservable], path: AbstractPath, state: PyTree) -> Step | None:
    """The next step, if an observable wants to see it."""
    wanted = any(isinstance(item, AbstractStepObservable) for item in observables)
    return path.next_step(state) if wanted else None


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
        symbol: str = "t",
        observables: tuple[AbstractObservable, ...],
        save_models: bool,
        max_steps: int,
        progress: bool,
        checkpoint: str | os.PathLike | None,
        switch: AbstractSwitch | None = None,
    ):
        self.path = self._begun = path
        self.positions = positions
        self.time = time
        self.times = times  # of the positions, as asked for: not rounded to the dtype of the run
        self.end = end
        self.symbol = symbol  # of the variable that `time` gives
        self.observables = observables
        self.save_models = save_models
        self.max_steps = max_steps
        self.progress = progress
        self.checkpoint = checkpoint
        self.switch = switch
        self.t: list[float] = []  # or another variable
        self._at: list[float | int] = []  # the positions recorded
        self.records: dict[str, list[Any]] = {}
        self.saved: list[PyTree] = []
        self.status, self.reason = "", ""
        self._gradients, self._hvps = 0, 0  # spent on records, and on locating a stop
        self._doubtful: dict[str, Any] = {}  # how often each doubt came up
        self.stopped_by: int | None = None  # the number of a stop condition
        self._state: Any = None
        self.observed: PyTree = None  # states of the observables; those of a run before this one are kept
        self._done = 0  # positions recorded
        self._located: tuple[float | int, int] | None = None
        self._step_losses: list[np.ndarray] = []
        self._checkpoint: Checkpoint | None = None
        self._budget = 64
        self._clock = Stopwatch()

    def __iter__(self) -> Iterator[PyTree[Array]]:
        """Yields the parameters at each record position; stops early if the run does."""
        driving = self._drive()
        while True:
            try:
                with self._clock:  # it must not run while another path is driven in between
                    params = next(driving)
            except StopIteration:
                return
            except KeyboardInterrupt:
                self.interrupt()
                return
            except Exception as error:
                if self._state is None:
                    raise
                if _interrupted(error):
                    self.interrupt()
                    return
                if not isinstance(error, RuntimeError):  # as a model or solver raises in compiled code
                    raise
                here = self.time(self._position())
                self._end(
                    "error", f"an evaluation failed after {self.symbol} = {here:.6g}: {message_of(error)}"
                )
                return
            yield params

    @property
    def params(self) -> PyTree[Array]:
        """θ at the last record."""
        return self._last

    def complete(self) -> "Run":
        """Drives the path to its end."""
        try:
            for _ in self:
                pass
        except KeyboardInterrupt:  # between two records
            self.interrupt()
        return self

    def interrupt(self) -> None:
        """Ends the run where it is; if it has not begun, there is nothing to hand back."""
        if self._state is None:
            raise KeyboardInterrupt
        self._save()
        self._take(self.path, self._state)  # the interrupt may have come between two that belong together
        here = self._position()
        if self._is_new(here):
            try:
                self._record(here, self.time(here))
            except Exception as error:
                if not _interrupted(error):
                    raise
        where = f"{self.symbol} = {self.time(here):.6g}"
        self._end("interrupted", f"the run was interrupted from the keyboard at {where}")

    def _drive(self) -> Iterator[PyTree[Array]]:
        with progress_bar(self.time(self.end), self.progress) as bar:
            path = self.path
            state = path.start()
            self._moves = Repeat(type(path).advance, type(path).where, path, state)
            self._initial_loss = float(check_start(path.problem, lambda: self._evaluated(0)[1]))
            self._gradients += 2
            self._last = path.problem.params
            if self.observed is None:
                self.observed = init_observables(self.observables, path.problem, self._last)
            self._state = state
            self._keep_step_losses()
            self._restore()
            self._take(self.path, self._state)
            # the horizon comes last even if nothing is recorded there
            targets = [*self.positions]
            if not targets or targets[-1] < self.end:
                targets.append(self.end)
            while self._done < len(targets):
                target = targets[self._done]
                code = self._advance(target, bar)
                if code != RUNNING:
                    yield from self._finish_early(code)
                    return
                label = self.times[self._done] if self._done < len(self.times) else None
                if not self._record(target, label):
                    self._end(*self.path.explain(self._state, NONFINITE, self._initial_loss))
                    return
                self._done += 1
                if label is not None:
                    yield self._last
            self.status = "success"
            self.reason = f"the horizon {self.symbol} = {self.time(self.end):.6g} was reached"

    def _take(self, path: AbstractPath, state: PyTree) -> None:
        """Goes on along `path` from `state`."""
        self.path, self._state = path, state
        self._moves = Repeat(type(path).advance, type(path).where, path, state)
        self._where = jax.device_get(path.where(state))

    def _advance(self, target: float | int, bar: Any) -> int | None:
        """Moves on to `target` in pieces short enough for Ctrl-C; the code why not, if so."""
        before = -1
        while True:
            position, steps, code = self._where
            self._show(bar, float(position))
            if code != RUNNING or position >= target:
                # a stop beyond the target is dealt with when the target has been recorded
                return RUNNING if code == STOPPED and self._locate()[0] > target else int(code)
            if steps >= self.max_steps:
                return None
            if steps == before:
                raise RuntimeError("the compiled loop made no step, so that the run would never end")
            before = steps
            budget = min(self._budget, self.max_steps - int(steps))
            if self.switch is not None:
                if steps >= self.switch.next:
                    path, state = self.switch.review(self._state)
                    if path is not self.path:
                        self._take(path, state)
                budget = min(budget, self.switch.next - int(steps))
            began = perf_counter()
            # arrays, because a Python number would be compiled in
            self._where = jax.device_get(self._moves(np.asarray(target), np.asarray(budget)))
            self._state = self._moves.get()
            self._keep_step_losses()
            if self._checkpoint is not None and self._checkpoint.is_due():
                self._save()
            self._budget = adapted(self._budget, perf_counter() - began)

    def _finish_early(self, code: int | None) -> Iterator[PyTree[Array]]:
        """Records where the path ends before its horizon, and says why it does."""
        if code == STOPPED:
            here, which = self._locate()
            self.stopped_by = which
            self._end("stopped", self.stopped_at(here, which))
        else:
            here = self._position()
            self._end(*self.path.explain(self._state, code, self._initial_loss))
        if not self._is_new(here):
            return
        if self._record(here, self.time(here)):
            yield self._last
        else:
            self._last, _ = self._measured(here)  # finite, even if the loss is not

    def stopped_at(self, here: float | int, which: int) -> str:
        """The reason of a run that the stop condition number `which` ended."""
        stop, level = self.path.watch.stops[which], float(self.path.watch.levels[which])
        where = f"{self.symbol} = {self.time(here):.6g}"
        return f"{stop.quantity} reached {level:.6g} at {where} ({type(stop).__name__})"

    def _end(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason

    def _position(self) -> float:
        return float(self.path.where(self._state).position)

    def _is_new(self, position: float | int) -> bool:
        """Whether `position` lies beyond the last one recorded."""
        return self._done == 0 or position > self.positions[min(self._done, len(self.positions)) - 1]

    def _locate(self) -> tuple[float | int, int]:
        if self._located is None:
            position, which, gradients, hvps = self.path.locate(self._state)
            self._located = position, which
            self._gradients += gradients
            self._hvps += hvps
        return self._located

    def _keep_step_losses(self) -> None:
        kept = self.path.step_losses(self._state)
        if kept is not None:
            losses, count = kept
            self._step_losses.append(np.asarray(losses)[: int(count)])

    def _measured(self, position: float | int) -> tuple[PyTree[Array], dict[str, Array]]:
        """θ at `position` of the path, and what a record holds."""
        known = self.path.known(self._state)
        if known is not None:
            return known
        self._gradients += 1
        return self._evaluated(position)

    def _evaluated(self, position: float | int) -> tuple[PyTree[Array], dict[str, Array]]:
        # one program for all of them, whatever kind of number a position is
        return self._moves.ask(type(self.path).evaluate, np.asarray(position, np.float64))

    def _record(self, position: float | int, t: float | None) -> bool:
        """Measures at `position`; records it at time `t`, if that is given and all is finite there."""
        params, own = self._measured(position)
        if not np.all(np.isfinite(jax.device_get((own["loss"], own["gradient_norm"])))):
            return False
        self._last, self._final_loss = params, own["loss"]
        if t is None:
            return True
        values, hvps, trusted = {}, 0, {}
        if self.observables:
            values, self.observed, hvps, trusted = read_observables(
                self.observables,
                self.path.problem,
                params,
                self.observed,
                step_to_read(self.observables, self.path, self._state),
            )
        self.t.append(t)
        self._at.append(position)
        for name, value in {**own, **values}.items():
            self.records.setdefault(name, []).append(value)
        for name, is_trusted in trusted.items():
            self._doubtful[name] = self._doubtful.get(name, 0) + (1 - is_trusted)
        self._hvps += hvps
        if self.save_models:
            self.saved.append(params)
        return True

    def _save(self) -> None:
        """Writes the checkpoint, if there is to be one."""
        if self._checkpoint is None:
            return
        header = {
            "done": self._done,
            "t": self.t,
            "names": list(self.records),
            "gradients": self._gradients,
            "hvps": int(self._hvps),
            "doubtful": {name: int(count) for name, count in self._doubtful.items()},
            "switch": None if self.switch is None else self.switch.memory,
        }
        trees = {
            "now": (self._state, self._last, self.observed),
            "step_losses": [np.concatenate(self._step_losses)] if self._step_losses else [],
            "records": [np.stack(jax.device_get(values)) for values in self.records.values()],
            "saved": _stack(self.saved),
        }
        try:
            self._checkpoint.write(header, trees)
        except OSError as error:  # a full disk must not end the run
            warnings.warn(f"the checkpoint could not be written: {error}", stacklevel=2)

    def _restore(self) -> None:
        """Goes on from the checkpoint, if there is one."""
        if self.checkpoint is None:
            return
        path, state = self.path, self._state
        programs = [program(type(path).advance, path, state, np.asarray(self.end), np.asarray(1))]
        programs.append("named" if self.switch is None else "chosen")  # which may change along the run
        if self.observables:
            step = step_to_read(self.observables, path, state)
            arguments = (self.observables, path.problem, self._last, self.observed, step)
            programs.append(program(read_observables, *arguments))
        numbers = (path, np.asarray(self.positions), np.asarray(self.end), np.asarray(self.save_models))
        checkpoint = Checkpoint(self.checkpoint, numbers, programs)

        def like(header):
            if self.switch is not None:
                self.path, self._state = self.switch.restored(header["switch"], state)
            return {"now": (self._state, self._last, self.observed)}

        found = checkpoint.read(like, rows=("step_losses", "records", "saved"))
        if found is not None:
            self._go_on_from(*found)
        self._checkpoint = checkpoint  # an interrupt before this must not replace the file

    def _go_on_from(self, header: Mapping[str, Any], trees: Mapping[str, Any]) -> None:
        """Takes over what a checkpoint holds."""
        self._done, self.t, self._doubtful = header["done"], header["t"], header["doubtful"]
        self._at = list(self.positions[: len(self.t)])
        self._gradients, self._hvps = header["gradients"], header["hvps"]
        self._state, self._last, self.observed = trees["now"]
        self._step_losses = trees["step_losses"]
        self.records = {n: list(rows) for n, rows in zip(header["names"], trees["records"], strict=True)}
        if self.t:
            self._final_loss = self.records["loss"][-1]
        if trees["saved"]:
            structure = jtu.tree_structure(self._last)
            rows = zip(*map(jnp.asarray, trees["saved"]), strict=True)
            self.saved = [jtu.tree_unflatten(structure, leaves) for leaves in rows]

    def trajectory(self, throw: bool) -> Trajectory:
        """What was recorded. Raises `FlowError` with it if the run failed and `throw` is true."""
        records = {name: np.zeros(0) for name in RESERVED}  # even if nothing was recorded
        for name, values in self.records.items():
            records[name] = np.stack(jax.device_get(values))
        path = self.path
        stats = path.stats(self._state)
        if self.switch is not None:
            stats = self.switch.told(stats)
        hvps = int(self._hvps)
        if stats["gradients"] is not None:
            stats["gradients"] += self._gradients
        stats["hvps"] += hvps
        stats |= {"record_gradients": self._gradients, "record_hvps": hvps}
        stats |= {"seconds": self._clock.seconds, "compile_seconds": self._clock.compile_seconds}
        losses = None
        if self.status in ("success", "stopped"):
            losses = np.append(records["loss"], jax.device_get(self._final_loss))
        readings = clock_readings(self.t, records)
        here = self._state, self.t, records, losses, self._doubtful
        found = doubts(self._begun, path.problem.params, self.symbol, *here)
        result = Trajectory(
            s=readings.s,
            t=readings.t,
            log_t=readings.log_t,
            records=records,
            model=path.problem.model(self._last),
            models=path.problem.model(_stack(self.saved)) if self.saved else None,
            step=np.asarray(self._at, dtype=int) if self._step_losses else None,
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

    def _show(self, bar: Any, position: float) -> None:
        if not self.progress:
            return
        shown = self.path.shown(self._state)
        if self.t:
            shown = {"loss": f"{float(self.records['loss'][-1]):.4g}"} | shown
        bar.set_postfix(shown, refresh=False)
        bar.update(self.time(position) - bar.n)


class Readings(NamedTuple):
    """The clock's own variable, time and its logarithm at the records."""

    s: np.ndarray
    t: np.ndarray
    log_t: np.ndarray


def clock_readings(s: Sequence[float], records: dict[str, np.ndarray]) -> Readings:
    """What the clock showed; log t is taken out of the records."""
    variable = np.asarray(s, dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        if "log_t" not in records:  # plain time
            return Readings(variable, variable, np.log(variable))
        log_t = records.pop("log_t").astype(np.float64)
        return Readings(variable, np.exp(log_t), log_t)


def doubts(
    path: AbstractPath,
    start: PyTree,
    symbol: str,
    state: PyTree,
    s: Sequence[float],
    records: Mapping[str, np.ndarray],
    losses: np.ndarray | None,
    doubtful: Mapping[str, Any],
) -> list[str]:
    """What may make a result untrustworthy, one sentence each.

    `losses` are those of the records and of the end, unless the run failed; `doubtful` says how often each
    doubt of an observable came up.
    """
    found = [] if losses is None else path.doubts(start, state, losses)
    for sentence, count in doubtful.items():
        if count:
            found.append(f"{sentence} ({int(count)} of {len(s)} records)")
    for name, values in records.items():
        if values.dtype.kind in "fc" and not np.all(np.isfinite(values)):
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            where = f"{symbol} = {s[row]:.6g}"
            found.append(f"{name} is NaN or infinite in some records, first at {where}")
    return found


def _interrupted(error: Exception) -> bool:
    """Whether Ctrl-C came while a callback ran, of which jax makes an error of its own."""
    return "KeyboardInterrupt" in str(error)


def _stack(trees: Sequence[PyTree[Array]]) -> PyTree[Array]:
    return jtu.tree_map(lambda *leaves: jnp.stack(leaves), *trees) if trees else []
