"""The members of an ensemble: what differs between them, and the compiled pieces of their paths."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from gflow import _tree
from gflow._path import AbstractPath
from gflow._problem import Problem, partition
from gflow._stepper import init_observables, read_observables, step_to_read
from gflow.observe import AbstractObservable


def split(
    model: PyTree, data: PyTree, loss: Callable | None, *, trainable: PyTree | None, chunk_size: int | None
) -> tuple[Problem, Problem]:
    """The problem of the first member, and what differs between members, stacked along a leading axis.

    Both are problems; the second has arrays only where members differ. Arrays that aren't trainable differ
    too if all of them have the length of the member axis, as `eqx.filter_vmap` of a constructor leaves them.
    """
    params, frozen = partition(model, trainable)
    members, spread = _count(params), _spread(params)
    fixed = jtu.tree_leaves(eqx.filter(frozen, eqx.is_array))
    per_member = all(leaf.shape[:1] == (members,) for leaf in fixed)
    stacked = (params, eqx.filter(frozen, eqx.is_array if per_member else lambda _: False))
    if spread is not None:
        stacked = eqx.filter_shard(stacked, spread)
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


def _spread(params: PyTree[Array]) -> NamedSharding | None:
    """How the member axis is spread over devices, if over several."""
    for sharding in (leaf.sharding for leaf in jtu.tree_leaves(params)):
        if isinstance(sharding, NamedSharding) and isinstance(mesh := sharding.mesh, Mesh):
            if mesh.size > 1 and any(sharding.spec[:1]):
                mesh = Mesh(mesh.devices, mesh.axis_names)  # for sharding by hand, not by types
                return NamedSharding(mesh, PartitionSpec(sharding.spec[0]))


class Members(eqx.Module):
    """A path for each member: that of the first, and what differs. Compiled pieces, as those of a path.

    Arrays that are passed or returned have a leading member axis.
    """

    path: AbstractPath
    differing: Problem
    observables: tuple[AbstractObservable, ...]
    spread: NamedSharding | None = eqx.field(static=True)  # of the member axis, if over several devices

    def __init__(self, path: AbstractPath, differing: Problem, observables: tuple[AbstractObservable, ...]):
        self.path, self.differing, self.observables = path, differing, observables
        self.spread, solver = _spread(differing.params), getattr(path, "solver", None)
        if self.spread is not None and isinstance(solver, diffrax.AbstractImplicitSolver):
            raise ValueError(
                f"solver must not be implicit for members that lie on several devices, but is "
                f"{type(solver).__name__}, whose linear solves can't be taken there; leave it out, use one "
                "of gflow.solvers such as EXPRB43(), or keep the members on one device."
            )

    @property
    def size(self) -> int:
        """How many there are."""
        return jtu.tree_leaves(self.differing.params)[0].shape[0]

    @eqx.filter_jit
    def start(self):
        """The states at position 0."""
        return self._each(lambda path: path.start())

    @eqx.filter_jit
    def evaluate(self, state):
        """What a record holds at the start."""
        return self._each(lambda path, state: path.evaluate(state, np.asarray(0.0))[1], state)

    def advance(self, state, until, budget):
        """Moves every member on to its own `until`; those that are there or have ended wait."""
        path = type(self.path)

        def of_all(differing, state, until, budget):
            of = self._of
            state, limit = of(path.opened)(differing, state, budget)
            going_on = lambda state: of(path.going_on)(differing, state, until, limit)

            def step(carry):
                state = of(path.step)(differing, *carry)
                return state, going_on(state)

            state, _ = _tree.while_loop(lambda carry: jnp.any(carry[1]), step, (state, going_on(state)))
            return of(path.closed)(differing, state)

        return self._on_each_device(of_all, state, until, budget)

    def where(self, state):
        """The positions."""
        return self.path.where(state)

    def record(self, state, position, last, is_open):
        """θ, what every record holds, whether it is finite, and the number of gradients.

        Members that are not `is_open` or not finite keep their `last` θ.
        """

        def of_one(path, state, position, last, is_open):
            known = path.known(state)
            params, values = path.evaluate(state, position) if known is None else known
            finite = jnp.isfinite(values["loss"]) & jnp.isfinite(values["gradient_norm"])
            return _tree.where(is_open & finite, params, last), values, finite, int(known is None)

        return self._each(of_one, state, position, last, is_open)

    @eqx.filter_jit
    def init(self):
        """The observables' states before the first record."""
        return self._each(lambda path: init_observables(self.observables, path.problem, path.problem.params))

    @eqx.filter_jit
    def read(self, params, states, state):
        """What the observables see."""

        def of_one(path, params, states, state):
            step = step_to_read(self.observables, path, state)
            return read_observables(self.observables, path.problem, params, states, step)

        return self._each(of_one, params, states, state)

    @eqx.filter_jit
    def one(self, state, i):
        """Path and state of member `i` alone."""
        take = lambda tree: jtu.tree_map(lambda x: x[i] if eqx.is_array(x) else x, tree)
        return self._path_of(take(self.differing)), take(state)

    def _each(self, function: Callable, *arguments: PyTree) -> Any:
        return self._on_each_device(self._of(function), *arguments)

    def _of(self, function: Callable) -> Callable:
        """`function(path, *arguments)` for members, given what differs."""
        return eqx.filter_vmap(lambda member, *arguments: function(self._path_of(member), *arguments))

    def _on_each_device(self, function: Callable, *arguments: PyTree) -> Any:
        """`function(differing, *arguments)`, for all members, or on each device for those that lie there."""
        everything = (self.differing, *arguments)
        if self.spread is None:
            return function(*everything)
        arrays, static = eqx.partition(everything, eqx.is_array)
        rest = []

        def here(arrays):
            result = function(*eqx.combine(arrays, static))
            rest.append(eqx.filter(result, eqx.is_array, inverse=True))
            return eqx.filter(result, eqx.is_array)

        mesh, across = self.spread.mesh, PartitionSpec(self.spread.spec[0])
        result = jax.shard_map(here, mesh=mesh, in_specs=across, out_specs=across, check_vma=False)(arrays)
        return eqx.combine(result, rest[0])

    def _path_of(self, member: Problem) -> AbstractPath:
        """The path of a member, given what differs."""
        return eqx.tree_at(lambda p: p.problem, self.path, eqx.combine(member, self.path.problem))
