"""Stability of optimisers: the sharpness above which each of them is linearly unstable."""

from gflow.stability._edge import Edge, edge
from gflow.stability._optimizers import (
    AbstractOptimizer,
    Adam,
    Custom,
    GradientDescent,
    Nesterov,
    Polyak,
    RMSProp,
)

__all__ = [
    "AbstractOptimizer",
    "Adam",
    "Custom",
    "Edge",
    "GradientDescent",
    "Nesterov",
    "Polyak",
    "RMSProp",
    "edge",
]
