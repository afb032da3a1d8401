"""Which solver a gradient flow gets if nobody names one."""

from typing import NamedTuple

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from gflow._problem import Problem
from gflow.solvers._exprb import EXPRB32
from gflow.solvers._kinks import has_kinks
from gflow.solvers._rkc import RKC3

_SMALL = 500  # parameters
_LARGE = 1_000_000  # parameters, of which EXPRB32 keeps 40 copies
_LOOSE, _TIGHT = 1e-3, 1e-6
# Of EXPRB32, in units of what the relative tolerance asks for: more would blur a tiny start.
_MOST_BLUR = 3.0


class Choice(NamedTuple):
    """A solver and, in one sentence, why."""

    solver: dfx.AbstractSolver
    reason: str


def choose(problem: Problem, rtol: float, *, atol: float = 1e-7, symmetric: bool) -> Choice:
    r"""The solver for a flow of `problem` to the tolerances `rtol` and `atol`.

    For a smooth loss of at least 500 parameters and `rtol` from 1e-6 it is one of gflow's. From `rtol` 1e-3
    and up to a million parameters that is [`EXPRB32`][gflow.solvers.EXPRB32], which needs the fewest
    gradients if a few eigenvalues stand apart and little more if they don't; at tighter tolerances
    [`RKC3`][gflow.solvers.RKC3], whose cost grows less there. EXPRB32 resolves a parameter to `atol` $+$
    `rtol` $|\theta|$ and not beyond, while the stages of RKC3 are exact gradients, and keep what those keep,
    such as the signs in a diagonal network from a tiny start. So RKC3 is taken as well where `atol` is more
    than 3 `rtol` times the root mean square of some array of parameters (other than zeros).

    In all other cases it is `diffrax.Tsit5`. `symmetric` says whether the Jacobian of the vector field is
    a symmetric matrix, as it is for gradient flow; without it the spectrum need not be real. With kinks, such
    as those of ReLU, every step meets some, and an error estimate of high order that feels them makes the
    steps tiny.

    The stiffness does not decide, because it is not known at the start: the sharpness rises eightfold
    out of a saddle. Where there is none gflow's solvers lose little.
    """
    if not symmetric:
        return Choice(dfx.Tsit5(), "the Jacobian of this flow need not have a real spectrum")
    if problem.dtype.itemsize < 4:
        return Choice(dfx.Tsit5(), "the precision is too low for differences of gradients")
    if problem.size < _SMALL:
        return Choice(dfx.Tsit5(), "the problem is small, so that the overhead of a step counts most")
    if rtol < _TIGHT:
        return Choice(dfx.Tsit5(), "the tolerance is so tight that the fifth order pays")
    if has_kinks(problem.value, problem.params):
        return Choice(dfx.Tsit5(), "the loss has kinks, which stabilised solvers resolve with tiny steps")
    stabilised = "stabilised, so that stiffness costs about its square root"
    if rtol < _LOOSE or problem.size > _LARGE:
        return Choice(RKC3(), stabilised)
    if atol > _MOST_BLUR * rtol * _smallest(problem.params):
        return Choice(RKC3(), f"{stabilised}, and true to parameters as small as atol")
    return Choice(EXPRB32(), "exponential, so that outlying eigenvalues cost little at a loose tolerance")


def _smallest(params: PyTree[Array]) -> float:
    """The least root mean square among the arrays that aren't zero; 0 if all are."""
    sizes = [float(jnp.sqrt(jnp.mean(x**2))) for x in jtu.tree_leaves(params) if x.size]
    return min((size for size in sizes if size > 0), default=0.0)
