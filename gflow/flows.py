"""Flows: vector fields on the parameters, as diffrax terms."""

import abc
from typing import ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from gflow._problem import Problem

__all__ = ["AbstractFlow", "GradientFlow"]


class AbstractFlow(eqx.Module):
    """A vector field dθ/dt = F(t, θ) on the parameters of a problem.

    A subclass may set the class attribute `descends`: F = −A(θ) ∇L(θ) with a positive definite A(θ), so that
    the loss falls, and the path is the same for any increasing function of L.
    """

    descends: ClassVar[bool] = False

    @abc.abstractmethod
    def vector_field(self, problem: Problem, t: Array, params: PyTree[Array]) -> PyTree[Array]:
        """F(t, θ), a PyTree like `params`."""

    def term(self, problem: Problem) -> diffrax.ODETerm:
        """The flow of `problem` as a diffrax term, for use with `diffrax.diffeqsolve`.

        The term is a PyTree that carries the problem, so that it can be passed through `jax.jit`,
        `jax.vmap` and `jax.grad`.
        """
        return diffrax.ODETerm(_Field(self, problem))


class GradientFlow(AbstractFlow):
    """Gradient flow, dθ/dt = −∇L(θ): steepest descent with an infinitely small step."""

    descends: ClassVar[bool] = True

    def vector_field(self, problem, t, params):
        """−∇L(θ)."""
        del t
        return jtu.tree_map(jnp.negative, problem.gradient(params))


class _Field(eqx.Module):
    """A flow and its problem as the function (t, y, args) that diffrax asks for."""

    flow: AbstractFlow
    problem: Problem

    def __call__(self, t, params, args):
        del args
        return self.flow.vector_field(self.problem, t, params)
