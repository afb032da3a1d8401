"""The loop that drives and records all members of an ensemble at once."""

import warnings
from time import perf_counter
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, PyTree

from gflow import _tree
from gflow._errors import message_of
from gflow._host import Stopwatch, adapted, progress_bar
from gflow._members import Members
from gflow._path import NONFINITE, RUNNING, STOPPED
from gflow._problem import Problem
from gflow._repeat import Repeat
from gflow._start_check import check_start
from gflow._stepper import Run, clock_readings, doubts
from gflow._trajectory import FlowError, Trajectory
from gflow.observe import RESERVED


class EnsembleRun:
    """All members of an ensemble being driven and recorded together.

    At each record position all members are measured: those under way there, those that ended before it
    where they ended. So a member's last record is its end, and what comes after it is left out.
    """

    def __init__(self, run: Run, differing: Problem):
        if run.checkpoint is not None:
            raise ValueError(
                "checkpoint can't be used with ensemble=True; run the members in groups, and save each "
                "trajectory."
            )
        self.run = run  # of the first member, not begun: what to record, and when
        self.members = Members(run.path, differing, run.observables)
        self.size = self.members.size
        self.statuses, self.reasons = [""] * self.size, [""] * self.size
        self.ends = np.full(self.size, np.inf)  # positions
        self._closed = np.zeros(self.size, bool)  # the end has been measured
        self._measured = np.zeros(self.size, int)  # so many rows count; the last of them is the end
        self._columns = np.zeros(self.size, int)  # and so many of them are at the times to record
        self._t = np.full(self.size, np.nan)  # of the last row
        self._gradients, self._hvps = np.zeros(self.size, int), np.zeros(self.size, int)
        self._rows: list[_Row] = []
        self._step_losses: list[tuple[np.ndarray, np.ndarray]] = []  # buffers, and how much counts of each
        self._state: Any = None
        self._budget = 64
        self._clock = Stopwatch()

    def complete(self) -> "EnsembleRun":
        """Drives all members to their ends."""
        try:
            with self._clock:
                self._drive()
        except KeyboardInterrupt:
            if self._state is None:
                raise
            here = np.asarray(self._where.position, np.float64)
            for i in _indices(self._under_way):
                reason = (
                    f"the run was interrupted from the keyboard at {self.run.symbol} = "
                    f"{self.run.time(here[i]):.6g}"
                )
                self._end(i, here[i], "interrupted", reason)
            self._record(np.inf)
        except RuntimeError as error:  # raised by the model or the solver inside compiled code
            if self._state is None:
                raise
            for i in _indices(self._under_way):
                here = self._where.position[i].item()
                where = f"{self.run.symbol} = {self.run.time(here):.6g}"
                reason = f"an evaluation failed after {where}: {message_of(error)}"
                self._end(i, here, "error", reason)
        return self

    def _drive(self) -> None:
        run, members, path = self.run, self.members, self.run.path
        with progress_bar(run.time(run.end), run.progress) as bar:
            state = members.start()
            self._initial_loss = check_start(path.problem, lambda: members.evaluate(state))
            self._gradients += 2
            self._last = members.differing.params
            self._observed = members.init()
            self._where = jax.device_get(members.where(state))
            self._moves = Repeat(Members.advance, Members.where, members, state)
            self._state = state
            self._keep_step_losses()
            targets = [*run.positions]
            if not targets or targets[-1] < run.end:
                targets.append(run.end)  # the horizon comes last even if nothing is recorded there
            for target in targets:
                self._advance(target, bar)
                self._record(target)
                if np.all(self._closed):
                    return
            for i in _indices(self._under_way):
                self.statuses[i] = "success"
                self.reasons[i] = f"the horizon {run.symbol} = {run.time(run.end):.6g} was reached"

    def _advance(self, target: float | int, bar: Any) -> None:
        """Moves on, in pieces short enough for Ctrl-C, until all are at `target` or have ended."""
        before = None
        while True:
            position, steps, code = self._where
            for i in _indices((code != RUNNING) & self._under_way):
                self._finish(i, int(code[i]))
            behind = (position < target) & self._under_way
            for i in _indices(behind & (steps >= self.run.max_steps)):
                self._finish(i, None)
            behind &= self._under_way
            self._show(bar, float(np.min(position, where=behind, initial=target)))
            if not np.any(behind):
                return
            if before is not None and np.array_equal(steps, before):
                raise RuntimeError("the compiled loop made no step, so that the run would never end")
            before = steps
            budget = np.minimum(self._budget, self.run.max_steps - steps)
            began = perf_counter()
            until = np.where(behind, target, np.zeros_like(target))  # nothing is before 0
            self._where = jax.device_get(self._moves(until, budget))
            self._state = self._moves.get()
            self._keep_step_losses()
            self._budget = adapted(self._budget, perf_counter() - began)

    @property
    def _under_way(self) -> Bool[np.ndarray, " members"]:
        return np.isinf(self.ends)

    def _finish(self, i: int, code: int | None) -> None:
        """Ends member `i`, and says where and why."""
        path, state = self.members.one(self._state, np.asarray(i))
        if code == STOPPED:
            here, which, gradients, hvps = path.locate(state)
            self._gradients[i] += gradients
            self._hvps[i] += hvps
            self._end(i, here, "stopped", self.run.stopped_at(here, which))
        else:
            here = float(self._where.position[i])
            self._end(i, here, *path.explain(state, code, float(self._initial_loss[i])))

    def _end(self, i: int, here: float | int, status: str, reason: str) -> None:
        self.ends[i], self.statuses[i], self.reasons[i] = here, status, reason

    def _record(self, target: float | int) -> None:
        """Measures every member at `target`, or at its end if that comes before."""
        run, is_open = self.run, ~self._closed
        here = np.minimum(target, self.ends)
        self._last, own, finite, gradients = self._moves.ask(Members.record, here, self._last, is_open)
        self._gradients[is_open] += gradients
        good = is_open & np.asarray(finite)
        for i in _indices(is_open & ~good & self._under_way):
            self._finish(i, NONFINITE)
        values, hvps, trusted = {}, 0, {}
        if run.observables:
            read = self.members.read(self._last, self._observed, self._state)
            values, self._observed, hvps, trusted = read
        self._rows.append(_Row({**own, **values}, hvps, trusted, self._last if run.save_models else None))
        self._measured[good] = len(self._rows)
        self._t[good] = [run.time(position) for position in here[good]]
        if len(self._rows) <= len(run.times):
            self._columns[good & (self.ends >= target)] = len(self._rows)
        self._closed |= ~good | (self.ends <= target)

    def _keep_step_losses(self) -> None:
        kept = self.run.path.step_losses(self._state)
        if kept is not None:
            self._step_losses.append(jax.device_get(kept))

    def _show(self, bar: Any, position: float) -> None:
        if self.run.progress:
            bar.set_postfix({"ended": f"{np.sum(np.isfinite(self.ends))}/{self.size}"}, refresh=False)
            bar.update(self.run.time(position) - bar.n)

    def trajectory(self, throw: bool) -> Trajectory:
        """What was recorded. Raises `FlowError` with it if a member failed and `throw` is true."""
        run, rows = self.run, jax.device_get([row._replace(params=None) for row in self._rows])
        names = rows[0].values if rows else dict.fromkeys(RESERVED, np.zeros(self.size))
        count = len(run.times)
        on_grid = np.arange(count) < self._columns[:, None]
        records, end = {}, {"t": self._t}
        nothing = np.full((self.size, 1), np.nan)  # if what observes the first record fails
        for name in names:
            values = np.stack([row.values[name] for row in rows], axis=1) if rows else nothing
            records[name] = _where(on_grid, values)
            ends = values[np.arange(self.size), self._measured - 1]
            end[name] = _where(self._measured > 0, ends)
        counts = np.arange(max(len(rows), 1)) < self._measured[:, None]
        per_row = lambda of: (
            np.stack([np.broadcast_to(of(row), self.size) for row in rows], axis=1)
            if rows
            else np.zeros((self.size, 1), int)
        )
        self._hvps += np.sum(per_row(lambda row: row.hvps), axis=1, where=counts)
        doubtful = {
            name: np.sum(~per_row(lambda row, name=name: row.trusted[name]), axis=1, where=counts)
            for name in (rows[0].trusted if rows else ())
        }
        readings = clock_readings(run.times, records)
        if "log_t" in end:
            with np.errstate(over="ignore"):
                end |= {"s": self._t, "t": np.exp(end["log_t"])}
        states = self._numbers()
        found = self._doubts(states, records, end, doubtful)
        problem = eqx.combine(self.members.differing, run.path.problem)
        models = None
        if run.save_models and rows:
            stacked = jtu.tree_map(lambda *x: jnp.stack(x, axis=1), *[row.params for row in self._rows])
            models = problem.model(jtu.tree_map(lambda x: jnp.asarray(_where(on_grid, x)), stacked))
        status, reason = _overall(self.statuses, self.reasons)
        result = Trajectory(
            s=readings.s,
            t=readings.t,
            log_t=readings.log_t,
            records=records,
            model=problem.model(self._last),
            models=models,
            step=np.asarray(run.positions, dtype=int) if self._step_losses else None,
            step_loss=self._all_step_losses(),
            status=status,
            reason=reason,
            warnings=tuple(found),
            stats=self._stats(states),
            statuses=tuple(self.statuses),
            reasons=tuple(self.reasons),
            end=end,
        )
        if found:
            more = f" (and {len(found) - 1} more sentences in `warnings`)" if len(found) > 1 else ""
            warnings.warn(found[0] + more, stacklevel=3)
        if throw and not result.ok and result.status != "interrupted":
            raise FlowError(result)
        return result

    def _stats(self, states: PyTree) -> dict[str, Any]:
        """Lists of what each member needed; that the others waited for the slowest is not counted."""
        each = [self.run.path.stats(jtu.tree_map(lambda x, i=i: x[i], states)) for i in range(self.size)]
        stats = {
            name: value if value is None or isinstance(value, str) else [stats[name] for stats in each]
            for name, value in each[0].items()
        }
        if stats["gradients"] is not None:
            stats["gradients"] = (stats["gradients"] + self._gradients).tolist()
        stats["hvps"] = (stats["hvps"] + self._hvps).tolist()
        stats |= {"record_gradients": self._gradients.tolist(), "record_hvps": self._hvps.tolist()}
        return stats | {"seconds": self._clock.seconds, "compile_seconds": self._clock.compile_seconds}

    def _numbers(self) -> PyTree:
        """The states of all members, on the host and without random keys."""
        is_number = lambda x: eqx.is_array(x) and not _tree.is_key(x)
        return jax.device_get(eqx.filter(self._state, is_number))

    def _doubts(
        self,
        states: PyTree,
        records: dict[str, np.ndarray],
        end: dict[str, np.ndarray],
        doubtful: dict[str, np.ndarray],
    ) -> list[str]:
        """What may make members untrustworthy, one sentence each."""
        path, starts, found = self.run.path, jax.device_get(self.members.differing.params), []
        for i in range(self.size):
            take = lambda tree, i=i: jtu.tree_map(lambda x: x[i], tree)
            ended_well = self.statuses[i] in ("success", "stopped")
            mine = {name: values[i, : self._columns[i]] for name, values in records.items()}
            losses = np.append(mine["loss"], end["loss"][i]) if ended_well else None
            untrusted = {name: count[i] for name, count in doubtful.items()}
            here = take(states), self.run.times, mine, losses, untrusted
            sentences = doubts(path, take(starts), self.run.symbol, *here)
            found += [f"member {i}: {sentence}" for sentence in sentences]
        return found

    def _all_step_losses(self) -> np.ndarray | None:
        """The losses of all steps, NaN behind the end of a member."""
        if not self._step_losses:
            return None
        buffers, counts = (np.stack(pieces, axis=1) for pieces in zip(*self._step_losses, strict=True))
        counting = np.arange(buffers.shape[2]) < counts[:, :, None]
        joined = [losses[which] for losses, which in zip(buffers, counting, strict=True)]
        longest = max(map(len, joined))
        return np.stack([np.pad(each, (0, longest - len(each)), constant_values=np.nan) for each in joined])


class _Row(NamedTuple):
    """One measurement of all members."""

    values: dict[str, Array]
    hvps: Any
    trusted: dict[str, Any]
    params: PyTree


def _indices(mask: np.ndarray) -> list[int]:
    """Where the mask is true."""
    return np.flatnonzero(mask).tolist()


def _where(mask: np.ndarray, values: Any) -> np.ndarray:
    """`values` cut or padded to the mask's columns, NaN where it is false."""
    if mask.ndim > 1:
        values = np.asarray(values)[:, : mask.shape[1]]
        missing = mask.shape[1] - values.shape[1]
        values = np.pad(values, [(0, 0), (0, missing), *[(0, 0)] * (values.ndim - 2)])
    if np.all(mask):
        return np.asarray(values)
    shaped = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return np.where(shaped, values, np.array(np.nan, np.result_type(values, np.float32)))


def _overall(statuses: list[str], reasons: list[str]) -> tuple[str, str]:
    """Status and reason of the ensemble: success, or those of the first member that matters most."""
    groups = {
        "were interrupted": [i for i, status in enumerate(statuses) if status == "interrupted"],
        "failed": [i for i, status in enumerate(statuses) if status not in ("success", "stopped")],
        "were stopped": [i for i, status in enumerate(statuses) if status == "stopped"],
    }
    for what, members in groups.items():
        if members:
            share, first = f"{len(members)} of {len(statuses)} members {what}", members[0]
            return statuses[first], f"{share}, member {first} for one: {reasons[first]}"
    return "success", reasons[0]
