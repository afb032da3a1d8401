"""What gflow's own solvers have beyond a diffrax solver."""

import abc
from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, PyTree


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


def refusal(refused: Bool[Array, ""]) -> dfx.RESULTS:
    """The result of a step: a refused one fails where the step size controller can't shorten it."""
    results = dfx.RESULTS
    return results.where(refused, results.dt_min_reached, results.successful)


def check_real(y: PyTree, name: str) -> None:
    """Raises `ValueError` unless all leaves are real."""
    dtypes = [str(dtype) for dtype in map(jnp.result_type, jtu.tree_leaves(y)) if dtype.kind == "c"]
    if dtypes:
        raise ValueError(
            f"y0 must be real for {name}, but holds {dtypes[0]}; split it into real and imaginary parts, or "
            "use RKC2."
        )
