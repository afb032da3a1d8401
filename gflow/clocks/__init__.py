"""Clocks: the time variable in which a path is traversed.

A flow dθ/dt = F(θ) runs along the same path in any other variable s that increases with t. In
classification the flow reaches its limit like 1/log t, and plain time ends where t overflows; log-loss
and log-norm time pass that by, and carry log t along.
"""

from gflow.clocks._clocks import (
    AbstractClock,
    Arclength,
    LogLoss,
    LogNorm,
    Pace,
    Time,
    TwoPhase,
)

__all__ = ["AbstractClock", "Arclength", "LogLoss", "LogNorm", "Pace", "Time", "TwoPhase"]
