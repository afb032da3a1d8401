"""Checks of the numbers among the arguments: that they have a value, and which."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from gflow import _tree

Real = float | int | np.number | Num[Array, ""] | Num[np.ndarray, ""]


def is_number(x: Any) -> bool:
    """Whether `x` is one real number, of Python, NumPy or JAX."""
    if isinstance(x, bool) or not isinstance(x, (int, float, np.number, np.ndarray, jax.Array)):
        return False
    return np.ndim(x) == 0 and not np.iscomplexobj(x)


def positive(name: str, value: Any, meaning: str, dtype: np.dtype) -> float:
    """`value` if it is positive and finite, also in `dtype`; a `ValueError` that says so otherwise."""
    number = float(value) if is_number(value) else math.nan
    smallest, largest = float(jnp.finfo(dtype).tiny), float(jnp.finfo(dtype).max)
    if not smallest <= number <= largest:
        in_dtype = f" in {dtype}" if 0 < number < math.inf else ""
        raise ValueError(f"{name} must be a positive finite {meaning}{in_dtype}, but {value!r} came.")
    return number


def refuse_traced(verb: str, **arguments: Any) -> None:
    """A `ValueError` if a verb is called where numbers have no value yet: an argument, or all of them."""
    traced = [f"{name} must hold numbers" for name, value in arguments.items() if _tree.is_traced(value)]
    if not traced and _tree.is_traced(jnp.zeros(())):  # inside jit nothing has one
        traced = [f"{verb} must be called where numbers have values"]
    if traced:
        raise ValueError(
            f"{traced[0]}, but came without values from inside jax.jit, jax.vmap or jax.grad; call {verb} "
            "outside of them: for many models at once with ensemble=True, and for derivatives solve "
            "gflow.flows.GradientFlow().term(problem) with diffrax.diffeqsolve."
        )


def count(name: str, value: Any) -> int:
    """`value` if it is a positive integer; a `ValueError` that says so otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a positive integer, but {value!r} came.")
    return int(value)
