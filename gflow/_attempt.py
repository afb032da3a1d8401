"""One attempted step of a diffrax solver, for one member or for all members of an ensemble."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from gflow import _tree


@eqx.filter_jit  # so that a path's start, which needs only the shape of it, and its loop share one trace
def attempt(solver, term, t, t_next, params, solver_state, made_jump):
    """`solver.step`, numbers as arrays. Under `vmap` explicit Runge-Kutta methods step all members at once.

    Those methods store their stages along a leading axis. `vmap` would put the members before that, and every
    stage would copy all stages into another order, for two thirds of the time of the whole step.

    A `made_jump` of `None` says at compile time that there is none.
    """
    everything = solver, term, t, t_next, params, solver_state, False if made_jump is None else made_jump
    arguments, static = eqx.partition(everything, eqx.is_array)

    def step(arguments):
        solver, term, t, t_next, params, solver_state, made_jump = eqx.combine(arguments, static)
        return _tree.as_arrays(solver.step(term, t, t_next, params, None, solver_state, made_jump))

    batched = jax.custom_batching.custom_vmap(step)

    @batched.def_vmap
    def of_members(size, are_batched, arguments):
        (are_batched,) = are_batched
        axes = jtu.tree_map(lambda is_batched: 0 if is_batched else None, are_batched)
        if isinstance(solver, diffrax.AbstractERK):
            spread = lambda x, is_batched: x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            rest = jtu.tree_map(spread, arguments[2:], are_batched[2:])
            field = jax.vmap(
                lambda term, t, y: eqx.combine(term, static[1]).vf(t, y, None), in_axes=(axes[1], 0, 0)
            )
            term = _OfMembers(lambda t, y: field(arguments[1], t, y))
            result = _step_together(size, solver, term, *eqx.combine(rest, static[2:]))
        else:
            result = jax.vmap(step, in_axes=(axes,), axis_size=size)(arguments)
        return result, jtu.tree_map(lambda _: True, result)

    return batched(arguments)


def _step_together(size, solver, term, t, t_next, params, solver_state, made_jump):
    """One step of all members, whose times, parameters and stages have a member axis of their own."""
    params, error, dense, solver_state, result = solver.step(
        term, t, t_next, params, None, solver_state, made_jump
    )
    for_all = lambda tree: jtu.tree_map(lambda x: jnp.broadcast_to(x, (size, *jnp.shape(x))), tree)
    if solver_state is not None:  # whether a step is the first of all, and the slope at its end
        solver_state = for_all(solver_state[0]), solver_state[1]
    dense = dense | {"k": jtu.tree_map(lambda stages: jnp.moveaxis(stages, 1, 0), dense["k"])}
    return _tree.as_arrays((params, error, dense, solver_state, for_all(result)))


def gradients(solver: diffrax.AbstractSolver) -> tuple[int | None, int]:
    """Gradients that one attempted step takes, and those before the first one."""
    if isinstance(solver, diffrax.HalfSolver):
        per_step, at_start = gradients(solver.solver)
        return (None if per_step is None else 3 * per_step), at_start
    if isinstance(solver, diffrax.AbstractERK):
        tableau = solver.tableau
        assert isinstance(tableau, diffrax.ButcherTableau)  # of one term
        return (tableau.num_stages - 1, 1) if tableau.fsal else (tableau.num_stages, 0)
    if isinstance(solver, (diffrax.Euler, diffrax.LeapfrogMidpoint)):
        return 1, 0
    if isinstance(solver, diffrax.ReversibleHeun):
        return 1, 1
    return None, 0


class _OfMembers(diffrax.AbstractTerm):
    """The term of all members, with times, steps and states along a leading axis."""

    field: Callable[[Any, PyTree[Array]], PyTree[Array]]

    def vf(self, t: Any, y: PyTree[Array], args: Any) -> PyTree[Array]:
        """Each member's field."""
        return self.field(t, y)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        """Each member's step."""
        return t1 - t0

    def prod(self, vf: PyTree[Array], control: Any) -> PyTree[Array]:
        """Step times field."""
        return jax.vmap(lambda f, h: jtu.tree_map(lambda x: h * x, f))(vf, control)
