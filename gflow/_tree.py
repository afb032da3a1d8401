"""Vector algebra on PyTrees of arrays: the few operations that the rest of gflow needs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree, Shaped


def partition(tree: PyTree, trainable: PyTree | Callable[[Any], bool] | None) -> tuple[PyTree, PyTree]:
    """The inexact arrays that a filter specification selects (all without one), and everything else."""
    selected, others = eqx.partition(tree, eqx.is_inexact_array if trainable is None else trainable)
    params, rest = eqx.partition(selected, eqx.is_inexact_array)
    return params, eqx.combine(others, rest)


def is_traced(tree: PyTree) -> bool:
    """Whether any leaf has no value yet, in code that is being compiled or transformed."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jtu.tree_leaves(tree))


def dot(a: PyTree[Array], b: PyTree[Array]) -> Shaped[Array, ""]:
    """Euclidean inner product ⟨a, b⟩ = Σ aᵢ bᵢ over all leaves."""
    products = jtu.tree_map(lambda x, y: jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST), a, b)
    return jtu.tree_reduce(jnp.add, products)


def norm(a: PyTree[Array]) -> Shaped[Array, ""]:
    """Euclidean norm ‖a‖₂ over all leaves; no overflow or underflow of the squares.

    The leaves are divided by the largest entry before they are squared, so that a gradient of size
    1e-30 in float32 has its true norm and not 0.
    """
    largest = jtu.tree_reduce(jnp.maximum, jtu.tree_map(lambda x: jnp.max(jnp.abs(x), initial=0), a))
    usable = (largest > 0) & jnp.isfinite(largest)
    scale = jnp.where(usable, largest, 1)
    scaled = jtu.tree_map(lambda x: x / scale, a)
    return scale * jnp.sqrt(dot(scaled, scaled))


def subtract(a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
    """a − b, leaf by leaf."""
    return jtu.tree_map(jnp.subtract, a, b)


def noise(seed: int | Array, shape: tuple[int, ...], dtype: Any) -> Shaped[Array, "..."]:
    """Numbers in [-1, 1] that look random, to start iterations from, the same on every device.

    An integer hash of the position. `jax.random` would do, but compiles ten times as long, and wherever a
    compiled loop needs a vector.
    """

    def scrambled(i):
        i = (i ^ (i >> 16)) * jnp.uint32(0x45D9F3B)
        i = (i ^ (i >> 16)) * jnp.uint32(0x45D9F3B)
        return i ^ (i >> 16)

    begin = scrambled(jnp.asarray(seed).astype(jnp.uint32) + jnp.uint32(1))
    bits = scrambled(begin + jax.lax.iota(jnp.uint32, math.prod(shape))) >> 8
    return (bits.astype(jnp.float32) / jnp.float32(2**23) - 1).reshape(shape).astype(dtype)


def all_finite(*trees: PyTree[Array]) -> Bool[Array, ""]:
    """Whether no entry of any leaf is NaN or infinite; of several trees of one form in one pass."""
    finite = jtu.tree_map(lambda *x: jnp.all(functools.reduce(jnp.logical_and, map(jnp.isfinite, x))), *trees)
    return jtu.tree_reduce(jnp.logical_and, finite, jnp.array(True))


def like(tree: PyTree[Array], vector: Float[Array, " P"]) -> PyTree[Array]:
    """A vector of all entries as a PyTree such as `tree`."""
    return ravel_pytree(tree)[1](vector)


def vector(tree: PyTree[Array]) -> Float[Array, " P"]:
    """All entries of a PyTree, as `ravel_pytree` orders them.

    Written leaf by leaf: on CPUs, XLA merges a concatenation with the sums over examples that a leaf comes
    from, and takes these anew for every entry of the vector.
    """
    leaves = jtu.tree_leaves(tree)
    entries = jnp.zeros(sum(leaf.size for leaf in leaves), jnp.result_type(*leaves))
    begin = 0
    for leaf in leaves:
        entries = jax.lax.dynamic_update_slice(entries, jnp.ravel(leaf).astype(entries.dtype), (begin,))
        begin += leaf.size
    return entries


def is_key(leaf: Any) -> bool:
    """Whether an array holds random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def numbers(leaf: Any) -> Any:
    """An array as one of numbers, that a file can hold: random keys as those they are made of."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def from_numbers(leaf: Any, found: Any) -> Any:
    """The inverse of `numbers` for an array of the kind of `leaf`."""
    found = jnp.asarray(found)
    return jax.random.wrap_key_data(found, impl=jax.random.key_impl(leaf)) if is_key(leaf) else found


def where(condition: Bool[Array, ""] | bool, a: PyTree, b: PyTree) -> PyTree:
    """`a` if `condition` else `b`, leaf by leaf; leaves that are no numbers are taken from `a`."""

    def pick(x: Any, y: Any) -> Any:
        if isinstance(x, jax.Array) and is_key(x):
            return from_numbers(x, jnp.where(condition, numbers(x), numbers(y)))
        return jnp.where(condition, x, y) if eqx.is_array_like(x) else x

    return jtu.tree_map(pick, a, b)


def as_arrays(a: PyTree) -> PyTree:
    """Every number of `a` as an array of a dtype of its own, as loops need it (no weak types)."""
    return jtu.tree_map(lambda x: jnp.asarray(x, jnp.result_type(x)) if eqx.is_array_like(x) else x, a)


def while_loop(going_on: Callable[[Any], Bool[Array, ""]], step: Callable[[Any], Any], state: Any) -> Any:
    """`jax.lax.while_loop` on a PyTree that has leaves other than arrays, which stay as they are."""
    dynamic, static = eqx.partition(state, eqx.is_array)
    whole = lambda dynamic: eqx.combine(dynamic, static)
    move = lambda dynamic: eqx.filter(as_arrays(step(whole(dynamic))), eqx.is_array)
    return whole(jax.lax.while_loop(lambda dynamic: going_on(whole(dynamic)), move, dynamic))
