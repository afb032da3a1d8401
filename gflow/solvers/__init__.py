"""Diffrax solvers made for gradient flow, whose Jacobian −∇²L is symmetric and often stiff.

An explicit method at its limit of stability needs a number of gradients proportional to the stiffness, a
stabilised or exponential one about its square root. All of these also work in `diffrax.diffeqsolve`.
"""

from gflow.solvers._abstract import AbstractFlowSolver
from gflow.solvers._choice import Choice, choose
from gflow.solvers._controller import Predictive
from gflow.solvers._dense import EXPRB43
from gflow.solvers._exprb import EXPRB42
from gflow.solvers._implicit import matrix_free
from gflow.solvers._rkc import RKC2, RKC3

__all__ = [
    "EXPRB42",
    "EXPRB43",
    "RKC2",
    "RKC3",
    "AbstractFlowSolver",
    "Choice",
    "Predictive",
    "choose",
    "matrix_free",
]
