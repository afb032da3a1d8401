"""gflow: exact gradient flow of any Equinox model, beside what gradient descent really does."""

from gflow import (
    bias,
    clocks,
    curvature,
    data,
    flows,
    losses,
    models,
    observe,
    optimizers,
    plot,
    solvers,
    stability,
    stop,
)
from gflow._compare import Comparison, compare
from gflow._descend import descend
from gflow._integrate import integrate
from gflow._problem import Problem
from gflow._trajectory import FlowError, Trajectory, load
from gflow.curvature import Sharpness, sharpness

__all__ = [
    "Comparison",
    "FlowError",
    "Problem",
    "Sharpness",
    "Trajectory",
    "bias",
    "clocks",
    "compare",
    "curvature",
    "data",
    "descend",
    "flows",
    "integrate",
    "load",
    "losses",
    "models",
    "observe",
    "optimizers",
    "plot",
    "sharpness",
    "solvers",
    "stability",
    "stop",
]
