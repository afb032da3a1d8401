"""Which solver a gradient flow gets if nobody names one."""

from typing import NamedTuple

import diffrax as dfx
import numpy as np

from gflow.solvers._exprb import EXPRB32
from gflow.solvers._rkc import RKC2, RKC3

# From here on, the one with the fewest gradients per error in benchmarks/solvers.py.
_LOOSE, _TIGHT = 3e-5, 1e-6
# Bytes of Krylov vectors that may be spent unasked.
_MOST_MEMORY = 2**31


class Choice(NamedTuple):
    """A solver and, in one sentence, why."""

    solver: dfx.AbstractSolver
    reason: str


def choose(rtol: float, size: int, dtype: np.dtype, *, symmetric: bool) -> Choice:
    """The solver for a flow of `size` parameters to the relative tolerance `rtol`.

    [`EXPRB32`][gflow.solvers.EXPRB32] for `rtol` from 3e-5, [`RKC3`][gflow.solvers.RKC3] from 1e-6,
    `diffrax.Tsit5` below, each where it reached its error with the fewest gradients over the stiff and
    nonstiff problems of the race together. Stiffness itself does not decide: it is not known at the start
    (the sharpness rises eightfold out of a saddle), and these solvers lose little without it.

    `symmetric` says whether the Jacobian of the vector field is a symmetric matrix, as it is for gradient
    flow: all solvers of [`gflow.solvers`][] rely on its real spectrum.
    """
    if not symmetric:
        return Choice(dfx.Tsit5(), "the Jacobian of this flow need not have a real spectrum")
    if np.dtype(dtype).itemsize < 4:
        return Choice(dfx.Tsit5(), "the precision is too low for differences of gradients")
    if rtol < _TIGHT:
        return Choice(dfx.Tsit5(), "the tolerance is so tight that the fifth order pays")
    if rtol < _LOOSE:
        return Choice(RKC3(), "stabilised, so that stiffness is cheap, and of order three for the tolerance")
    solver = EXPRB32()
    if size * np.dtype(dtype).itemsize * solver.max_basis > _MOST_MEMORY:
        return Choice(RKC2(), "stabilised, so that stiffness is cheap; a Krylov basis would not fit in 2 GiB")
    return Choice(solver, "a few Krylov vectors a step make stiffness cheap at this tolerance")
