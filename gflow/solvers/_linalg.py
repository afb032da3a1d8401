"""Vector algebra on PyTrees of arrays, as the solvers of this folder need it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int, PyTree

from gflow import _tree

Vector = PyTree[Any]
Scalar = Float[Array, ""]


def leading(function: Callable[[int], Any], most: int, size: Int[Array, ""]) -> Any:
    """`function(n)` with an `n` of at least `size`, but not much larger."""
    sizes = [n for n in (8, 16) if n < most] + [most]
    branches = [functools.partial(function, n) for n in sizes]
    return jax.lax.switch(jnp.sum(size > jnp.asarray(sizes[:-1])), branches)


def real_dtype(y: Vector):
    """The floating dtype in which scalars that belong to `y` are kept."""
    leaves = jtu.tree_leaves(y)
    dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
    return jnp.finfo(dtype).dtype


def add(x: Vector, y: Vector) -> Vector:
    return jtu.tree_map(jnp.add, x, y)


def sub(x: Vector, y: Vector) -> Vector:
    return jtu.tree_map(jnp.subtract, x, y)


def scale(a, x: Vector) -> Vector:
    """`a x`, in the dtype of `x` leaf by leaf."""
    return jtu.tree_map(lambda xi: jnp.asarray(a, xi.dtype) * xi, x)


def axpy(a, x: Vector, y: Vector) -> Vector:
    """`a x + y`, in the dtype of `y` leaf by leaf."""
    return jtu.tree_map(lambda xi, yi: (jnp.asarray(a, yi.dtype) * xi + yi).astype(yi.dtype), x, y)


def select(pred, x: Vector, y: Vector) -> Vector:
    return jtu.tree_map(lambda a, b: jnp.where(pred, a, b), x, y)


def norm(x: Vector) -> Scalar:
    """Euclidean norm over all leaves, with a derivative of zero at zero."""
    squares = [jnp.sum(jnp.real(xi * jnp.conj(xi))) for xi in jtu.tree_leaves(x)]
    square = sum(squares, jnp.zeros((), real_dtype(x)))
    flat = square == 0  # so that NaN stays NaN
    return jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, square)))


def field(vf: Callable, t, y: Vector, args) -> Vector:
    """`vf(t, y, args)` in the dtypes of `y`."""
    return jtu.tree_map(lambda f, yi: jnp.asarray(f, yi.dtype), vf(t, y, args), y)


def stop_gradient(x: PyTree) -> PyTree:
    return jtu.tree_map(lambda a: jax.lax.stop_gradient(a) if hasattr(a, "dtype") else a, x)


def as_time(t):
    """`t` as an array; a Python number gets the default floating dtype."""
    return jnp.asarray(t, getattr(t, "dtype", jnp.result_type(float)))


def noise(y: Vector) -> Vector:
    """A fixed vector that looks random (entries in [-1, 1]), to start power iterations from."""
    leaves, treedef = jtu.tree_flatten(y)
    return jtu.tree_unflatten(
        treedef, [_tree.noise(k, leaf.shape, leaf.dtype) for k, leaf in enumerate(leaves)]
    )


def least(a, b: float):
    """The smaller of two numbers; those that have a value already need no program for it."""
    return jnp.minimum(a, b) if _tree.is_traced(a) else min(a, b)


def size(y: Vector) -> int:
    return sum(a.size for a in jtu.tree_leaves(y))


def difference_step(y: Vector) -> Scalar:
    """Length of the displacement for `J v = (f(y + e v) - f(y)) / e`.

    The error of the product is about `e ‖f''‖ / 2 + ε ‖f‖ / e`; the power 0.4 of the rounding
    unit leans to the side of rounding, because curvature of `f` is what varies most.
    """
    dtype = real_dtype(y)
    relative = float(jnp.finfo(dtype).eps) ** 0.4
    return jnp.asarray(relative, dtype) * jnp.maximum(norm(stop_gradient(y)), 1e-3)
