"""What a path through parameter space is to the loop that drives it.

It knows how to move on (compiled, a bounded number of steps per call) and what its parameters are at a
given position.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from gflow import _tree
from gflow._problem import Problem
from gflow._watch import Watch
from gflow.observe import Step

# Why an `advance` returned before its target; the paths add the words.
RUNNING, STOPPED, NONFINITE, DIVERGED, UNDERFLOW, SOLVER_FAILURE, ASTRAY = range(7)


class Position(NamedTuple):
    """Where a path is: what the host needs to know between two calls of `advance`."""

    position: Float[Array, ""] | Int[Array, ""]
    steps: Int[Array, ""]
    code: Int[Array, ""]


class AbstractPath(eqx.Module):
    """A path through parameter space, in compiled pieces. Positions are times or step numbers."""

    problem: eqx.AbstractVar[Problem]
    watch: eqx.AbstractVar[Watch]

    @abc.abstractmethod
    def start(self) -> PyTree:
        """The state at position 0."""

    def advance(self, state: PyTree, until: Any, budget: Any) -> PyTree:
        """Moves on until `until` is reached or passed, at most `budget` attempted steps."""
        state, limit = self.opened(state, budget)
        going_on, step = lambda now: self.going_on(now, until, limit), lambda now: self.step(now, True)
        return self.closed(_tree.while_loop(going_on, step, state))

    @abc.abstractmethod
    def opened(self, state: PyTree, budget: Any) -> tuple[PyTree, Any]:
        """The state that the compiled loop begins with, and the number of steps at which it pauses."""

    @abc.abstractmethod
    def going_on(self, state: PyTree, until: Any, limit: Any) -> Bool[Array, ""]:
        """Whether the loop makes another step."""

    @abc.abstractmethod
    def step(self, now: PyTree, go: Bool[Array, ""] | bool) -> PyTree:
        """One attempted step; the state stays as it is if `go` is false, as for members that wait for others.

        Here, because to choose between all of two states, as `vmap` of a loop does, costs more than a step of
        a small problem.
        """

    @abc.abstractmethod
    def closed(self, state: PyTree) -> PyTree:
        """The state that `advance` leaves, after that of the loop."""

    @abc.abstractmethod
    def where(self, state: PyTree) -> Position:
        """The position of `state`."""

    @abc.abstractmethod
    def evaluate(self, state: PyTree, position: Any) -> tuple[PyTree[Array], dict[str, Array]]:
        """θ at `position`, which lies within the last step, and what every record of this path holds there.

        That is loss, gradient norm, and with some clocks `log_loss` and `log_t`. It takes one gradient.
        """

    @abc.abstractmethod
    def known(self, state: PyTree) -> tuple[PyTree[Array], dict[str, Array]] | None:
        """What `evaluate` would give, if the steps have found it already; `None` if not."""

    @abc.abstractmethod
    def locate(self, state: PyTree) -> tuple[float | int, int, int, int]:
        """After STOPPED: the position at which a stop condition held first, and which one.

        And the gradients and Hessian-vector products spent on finding it.
        """

    @abc.abstractmethod
    def explain(self, state: PyTree, code: int | None, initial_loss: float) -> tuple[str, str]:
        """Status and reason after a failure with `code`; `None` is for max_steps."""

    @abc.abstractmethod
    def stats(self, state: PyTree) -> dict[str, Any]:
        """Counts of the path itself: solver, steps, rejected, gradients, hvps."""

    @abc.abstractmethod
    def next_step(self, state: PyTree) -> Step | None:
        """The step that comes next; `None` for a path that has no steps of its own."""

    @abc.abstractmethod
    def shown(self, state: PyTree) -> dict[str, str]:
        """What the progress bar shows of `state`."""

    @abc.abstractmethod
    def step_losses(self, state: PyTree) -> tuple[Array, Array] | None:
        """The loss at each step that `start` or the last `advance` made, if the path keeps it.

        In a buffer, and how many there are.
        """

    @abc.abstractmethod
    def doubts(self, start: PyTree, state: PyTree, losses: np.ndarray) -> list[str]:
        """Sentences on what may make the result untrustworthy.

        In θ at the start, the losses of the records and the end, and the state there.
        """


class AbstractSwitch(abc.ABC):
    """Changes the path of a run, or rather the solver that follows it, between two steps."""

    memory: dict[str, Any]  # all that it knows, for checkpoints

    @property
    @abc.abstractmethod
    def next(self) -> int:
        """The number of attempted steps after which `review` is to be called."""

    @abc.abstractmethod
    def review(self, state: PyTree) -> tuple[AbstractPath, PyTree]:
        """The path with which to go on, and its state; `next` is later afterwards."""

    @abc.abstractmethod
    def restored(self, memory: dict[str, Any], state: PyTree) -> tuple[AbstractPath, PyTree]:
        """Path and form of the state to go on from `memory`; `state` is that of the start."""

    @abc.abstractmethod
    def told(self, stats: dict[str, Any]) -> dict[str, Any]:
        """The statistics of the last path, with what was changed."""
