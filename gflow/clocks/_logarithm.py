"""The logarithm of a loss along a flow, for losses that have one where they underflow themselves."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gflow import _tree
from gflow._problem import Problem
from gflow.flows import AbstractFlow
from gflow.losses import AbstractExponentialTail, Log


def has_tail(problem: Problem) -> bool:
    """Whether its loss has a logarithm of its own."""
    return isinstance(problem.loss, AbstractExponentialTail) and problem.chunk_size is None


def height(problem: Problem, params: PyTree[Array]) -> tuple[Array, Array]:
    """log L and ‖∇ log L‖."""
    log_loss, gradient = _logarithm(problem).value_and_gradient(params)
    return log_loss, _tree.norm(gradient)


def per_loss(flow: AbstractFlow, problem: Problem, params: PyTree[Array]) -> tuple[Array, PyTree[Array]]:
    """log L and F/L."""
    logarithm, zero = _logarithm(problem), jnp.zeros((), problem.dtype)
    log_loss = logarithm.value(params)
    if flow.descends:  # its field is proportional to ∇L, and ∇ log L = ∇L / L
        return log_loss, flow.vector_field(logarithm, zero, params)
    field = flow.vector_field(problem, zero, params)
    return log_loss, jax.tree.map(lambda x: x * jnp.exp(-log_loss), field)


def _logarithm(problem: Problem) -> Problem:
    """The problem of log L."""
    assert isinstance(problem.loss, AbstractExponentialTail)  # or this isn't called
    return eqx.tree_at(lambda p: p.loss, problem, Log(problem.loss))
