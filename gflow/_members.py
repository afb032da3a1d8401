"""Members of an ensemble: told apart, and the compiled pieces of their paths under `vmap`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from gflow import _tree
from gflow._problem import Problem, partition
from gflow._stepper import AbstractPath, init_observables, read_observables
from gflow.observe import AbstractObservable


def split(
    model: PyTree, data: PyTree, loss: Callable | None, *, trainable: PyTree | None, chunk_size: int | None
) -> tuple[Problem, Problem]:
    """The problem of the first member, and what differs between members, stacked along a leading axis.

    Both are problems; the second has arrays only where members differ. Arrays that aren't trainable differ
    too if all of them have the length of the member axis, as `eqx.filter_vmap` of a constructor leaves them.
    """
    params, frozen = partition(model, trainable)
    members = _count(params)
    fixed = jtu.tree_leaves(eqx.filter(frozen, eqx.is_array))
    per_member = all(leaf.shape[:1] == (members,) for leaf in fixed)
    stacked = (params, eqx.filter(frozen, eqx.is_array if per_member else lambda _: False))
    first = jtu.tree_map(lambda leaf: leaf[0], stacked)
    selected = jtu.tree_map(lambda leaf: leaf is not None, params, is_leaf=lambda leaf: leaf is None)
    try:
        problem = Problem(eqx.combine(*first, frozen), data, loss, trainable=selected, chunk_size=chunk_size)
    except ValueError as error:
        raise ValueError(
            f"{error} (This is the first of {members} members: with ensemble=True the leading axis of every "
            "trainable leaf counts the members.)"
        ) from error
    nothing = jtu.tree_map(lambda _: None, problem)
    parts = lambda p: (p.params, p._frozen)
    return problem, eqx.tree_at(parts, nothing, stacked, is_leaf=lambda x: x is None)


def _count(params: PyTree[Array]) -> int:
    """The common length of the leading axes."""
    shapes = {jtu.keystr(path): leaf.shape for path, leaf in jtu.tree_leaves_with_path(params)}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) > 1 or () in lengths:
        listed = [f"{name} has shape {shape}" for name, shape in shapes.items()]
        raise ValueError(
            "model must have one leading axis of members on every trainable leaf with ensemble=True, but "
            f"{', '.join(listed[:4])}; make the members with eqx.filter_vmap of a constructor over keys."
        )
    return lengths.pop()[0]


class Ensemble(eqx.Module):
    """A path for each member: that of the first, and what differs. Compiled pieces, as those of a path.

    Arrays that are passed or returned have a leading member axis.
    """

    path: AbstractPath
    members: Problem
    observables: tuple[AbstractObservable, ...]

    @eqx.filter_jit
    def start(self):
        """The states at position 0."""
        return self._each(lambda path: path.start())

    @eqx.filter_jit
    def evaluate(self, state):
        """Loss and gradient norm at the start."""
        return self._each(lambda path, state: path.evaluate(state), state)

    def advance(self, state, until, budget):
        """Moves every member on to its own `until`; those that are there or have ended wait."""
        return self._each(type(self.path).advance, state, until, budget)

    def where(self, state):
        """The positions."""
        return self.path.where(state)

    @eqx.filter_jit
    def record(self, state, position, last, is_open):
        """θ, loss, gradient norm and whether both are finite, and the number of gradients.

        Members that are not `is_open` or not finite keep their `last` θ.
        """

        def of_one(path, state, position, last, is_open):
            params, loss, gradient_norm, gradients = path.record(state, position)
            finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
            return _tree.where(is_open & finite, params, last), loss, gradient_norm, finite, gradients

        return self._each(of_one, state, position, last, is_open)

    @eqx.filter_jit
    def init(self):
        """The observables' states before the first record."""
        return self._each(lambda path: init_observables(self.observables, path.problem, path.problem.params))

    @eqx.filter_jit
    def read(self, params, states):
        """What the observables see."""
        read = lambda path, *arguments: read_observables(self.observables, path.problem, *arguments)
        return self._each(read, params, states)

    @eqx.filter_jit
    def one(self, state, i):
        """Path and state of member `i` alone."""
        take = lambda tree: jtu.tree_map(lambda x: x[i] if eqx.is_array(x) else x, tree)
        return self._path_of(take(self.members)), take(state)

    def _each(self, function: Callable, *arguments: PyTree) -> Any:
        def of_one(member, arguments):
            return function(self._path_of(member), *arguments)

        return eqx.filter_vmap(of_one)(self.members, arguments)

    def _path_of(self, member: Problem) -> AbstractPath:
        return eqx.tree_at(lambda p: p.problem, self.path, eqx.combine(member, self.path.problem))
