"""What gflow's own solvers have beyond a diffrax solver."""

import abc
from typing import Any

import diffrax as dfx


class AbstractFlowSolver(dfx.AbstractAdaptiveSolver):
    """A diffrax solver made for gradient flow, which counts its gradients and learns from rejections.

    It works in `diffrax.diffeqsolve` as any other. [`gflow.integrate`][] does three things more: it gives
    the step size controller the tolerances that deliver the error asked for, keeps what a rejected step
    has learnt, and reports the gradients that were spent.

    The solver's state has the attributes `gradients`, the number of evaluations of the vector field so far,
    and `f0`, the field where the next step begins. `init` takes no notice of `t1`.
    """

    @abc.abstractmethod
    def tolerances(self, rtol: Any, atol: Any) -> tuple[Any, Any]:
        """The (rtol, atol) for the controller with which the delivered error is close to `rtol`."""

    @abc.abstractmethod
    def prepared(self, rtol: Any, atol: Any) -> "AbstractFlowSolver":
        """The solver for a controller with these tolerances."""

    @abc.abstractmethod
    def rejected(self, before: Any, attempted: Any) -> Any:
        """The state from which to retry a step.

        `before` is the state that the rejected `step` was given, `attempted` the one that it returned.
        """
