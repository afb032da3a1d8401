"""Checks of what models are made from."""

from typing import Any

from gflow import _tree
from gflow._numbers import is_number


def scale_of(name: str, value: Any) -> Any:
    """`value` if it is a positive finite number, or has no value yet under a transformation."""
    if not _tree.is_traced(value) and not (is_number(value) and 0 < float(value) < float("inf")):
        raise ValueError(
            f"{name} must be a positive finite scale of the initialisation, but {value!r} came; from zero "
            "weights a product never moves."
        )
    return value
