"""Two runs of a flow, in one clock and then in another, as one run."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from gflow._problem import Problem
from gflow._stepper import Run
from gflow._trajectory import FlowError, Trajectory
from gflow.clocks._clocks import Refused


class TwoPhaseRun:
    """A run that its first stop condition ends, and then a second one from there.

    `begin` makes the second run from the problem at the switch, the logarithm of the time there, and what the
    observables remember, such as the value that a conserved quantity had at the start of the first.
    """

    def __init__(self, first: Run, begin: Callable[[Problem, float, PyTree], Run]):
        self._first, self._begin = first, begin
        self._second: Run | None = None

    def complete(self) -> "TwoPhaseRun":
        """Drives both to their ends; without a switch there is but one."""
        self._first.complete()
        if self._first.stopped_by == 0:
            self._before = self._first.trajectory(throw=False)
            is_params = lambda p: p.params
            problem = eqx.tree_at(is_params, self._first.path.problem, self._first.params)
            try:  # the first phase must not be lost
                second = self._begin(problem, float(self._before.log_t[-1]), self._first.observed)
                self._second = second.complete()
            except Refused as error:
                self._first.status = "clock_failure"
                self._first.reason = f"the loss fell to its level, but {error}"
            except KeyboardInterrupt:
                self._first.status = "interrupted"
                self._first.reason = "the run was interrupted from the keyboard where its clock changes"
        return self

    def trajectory(self, throw: bool) -> Trajectory:
        """What was recorded. Raises `FlowError` with it if the run failed and `throw` is true."""
        if self._second is None:
            result = self._first.trajectory(throw=False)
            if result.status in ("max_steps", "clock_failure") and self._first.stopped_by is None:
                reason = (
                    f"{result.reason}. The loss did not fall to the level at which the clock changes: the "
                    "data may not be separable by this model, or give a higher loss_below"
                )
                result = dataclasses.replace(result, reason=reason)
        else:
            result = self._joined(self._before, self._second)
        if throw and not result.ok and result.status != "interrupted":
            raise FlowError(result)
        return result

    def _joined(self, first: Trajectory, run: Run) -> Trajectory:
        """One trajectory of both, with one record at the switch."""
        second = run.trajectory(throw=False)
        again = int(second.s[0] == 0) if len(second.s) else 0
        join = lambda a, b: np.concatenate([a, b[again:]])
        before = {"log_loss": np.log(first.loss)} | first.records  # plain time has none
        models = None
        if run.save_models:
            stacked = jtu.tree_map(lambda *x: jnp.stack(x), *self._first.saved, *run.saved[again:])
            models = run.path.problem.model(stacked)
        return dataclasses.replace(
            second,
            t=join(first.t, second.t),
            s=join(first.s - first.s[-1], second.s),
            log_t=join(first.log_t, second.log_t),
            records={name: join(before[name], values) for name, values in second.records.items()},
            models=models,
            warnings=(*first.warnings, *second.warnings),
            stats=_added(first.stats, second.stats),
            switch=len(first.s) - 1,
        )


def _added(first: dict, second: dict) -> dict:
    """Counts of both phases, and what each did in words."""
    added = {}
    for name, value in second.items():
        before = first[name]
        if isinstance(value, str):
            added[name] = value if value == before else f"{before}, then {value}"
        else:
            added[name] = None if value is None or before is None else before + value
    return added
