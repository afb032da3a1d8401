"""Checks of the numbers that make an optimiser, where they are given."""

import math
from collections.abc import Callable
from typing import Any

import optax

from gflow import _tree
from gflow._numbers import is_number


def rate(value: Any) -> Any:
    """A learning rate: positive and finite, or a schedule."""
    return _positive("learning_rate", value, "learning rate, or an optax schedule (step -> number)")


def threshold(value: Any) -> Any:
    """A threshold that the user knows: positive and finite, or a function of the step."""
    return _positive("limit", value, "sharpness, or a function (step -> number)")


def share(name: str) -> Callable[[Any], Any]:
    """A momentum, or the decay rate of an average: in [0, 1)."""
    return lambda value: _within(name, value, lambda number: 0 <= number < 1, "a number in [0, 1)")


def at_least_zero(name: str) -> Callable[[Any], Any]:
    """A weight decay or ε: finite and at least 0."""
    return lambda value: _within(
        name, value, lambda number: 0 <= number < math.inf, "a finite number of at least 0"
    )


def transformation(value: Any) -> Any:
    """An optax transformation."""
    if not isinstance(value, optax.GradientTransformation):
        raise ValueError(
            f"optimizer must be an optax transformation, such as optax.lion(1e-3), but {value!r} came."
        )
    return value


def _positive(name: str, value: Any, meaning: str) -> Any:
    if callable(value):
        return value
    return _within(name, value, lambda number: 0 < number < math.inf, f"a positive finite {meaning}")


def _within(name: str, value: Any, holds: Callable[[float], bool], accepted: str) -> Any:
    if _tree.is_traced(value):  # has no value yet
        return value
    if not is_number(value) or not holds(float(value)):
        raise ValueError(f"{name} must be {accepted}, but {value!r} came.")
    return value
