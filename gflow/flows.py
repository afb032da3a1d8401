"""Flows: vector fields on the parameters, as diffrax terms."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from gflow import _tree
from gflow._numbers import Real, is_number
from gflow._problem import Problem

__all__ = ["AbstractFlow", "GradientFlow", "LinearisedFlow", "MirrorFlow", "WeightDecay"]


class AbstractFlow(eqx.Module):
    """A vector field dθ/dt = F(t, θ) on the parameters of a problem.

    A subclass may set the class attribute `descends`: F = −A(θ) ∇L(θ) with a positive definite A(θ) that
    doesn't depend on L, so that the loss falls, and F/L is the field of log L.
    """

    descends: ClassVar[bool] = False

    @abc.abstractmethod
    def vector_field(self, problem: Problem, t: Array, params: PyTree[Array]) -> PyTree[Array]:
        """F(t, θ), a PyTree like `params`. The start of the run is at `problem.params`."""

    def anchored(self, start: PyTree[Array]) -> "AbstractFlow":
        """The flow with which a run that began at `start` goes on as another run.

        To be overridden by a flow that depends on where it starts.
        """
        del start
        return self

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


class LinearisedFlow(AbstractFlow):
    """The flow of the model linearised at θ₀, dθ/dt = −∇_θ L(f(·; θ₀) + ⟨∇f(·; θ₀), θ − θ₀⟩).

    It is the flow of the neural tangent kernel at θ₀, followed in the parameters, and the limit of gradient
    flow as the scale of the output grows (lazy training). For the squared error it is linear and has a closed
    form. What is recorded is of the model itself at θ(t); [`gflow.models.Linearised`][] is the linearised
    model as one of its own, whose outputs can be recorded.

    The loss may only call the model it is given.

    **Arguments:** `start` is θ₀, a PyTree like the trainable leaves; by default, where the run starts.

    ??? cite "References"

        A. Jacot, F. Gabriel and C. Hongler. Neural Tangent Kernel: Convergence and Generalization in Neural
        Networks. NeurIPS 2018. [arXiv:1806.07572](https://arxiv.org/abs/1806.07572)

        L. Chizat, E. Oyallon and F. Bach. On Lazy Training in Differentiable Programming. NeurIPS 2019.
        [arXiv:1812.07956](https://arxiv.org/abs/1812.07956)
    """

    start: PyTree[Array] | None = None

    def anchored(self, start):
        """Linearised at the same point."""
        return self if self.start is not None else LinearisedFlow(start)

    def vector_field(self, problem, t, params):
        """−∇_θ L(f(·; θ₀) + ⟨∇f(·; θ₀), θ − θ₀⟩)."""
        del t
        start = problem.params if self.start is None else self.start

        def loss(p, data):
            def linear(x):
                value, slope = jax.jvp(lambda q: problem.model(q)(x), (start,), (_tree.subtract(p, start),))
                return jtu.tree_map(jnp.add, value, slope)

            return problem.loss(linear, data)

        return jtu.tree_map(jnp.negative, problem.mean(lambda data: jax.grad(loss)(params, data)))


class WeightDecay(AbstractFlow):
    """Gradient flow with weight decay, dθ/dt = −∇L(θ) − λθ: that of L(θ) + (λ/2)‖θ‖².

    The recorded loss and gradient norm remain those of L.

    **Arguments:** `strength` is λ.

    **Raises:** `ValueError` unless λ is a non-negative finite number.
    """

    strength: Real

    def __check_init__(self):
        valid = is_number(self.strength)
        if valid and not _tree.is_traced(self.strength):
            valid = 0 <= float(self.strength) < float("inf")
        if not valid:
            raise ValueError(
                f"strength must be a non-negative finite number, but {self.strength!r} came; without decay "
                "leave the flow out."
            )

    def vector_field(self, problem, t, params):
        """−∇L(θ) − λθ."""
        del t
        return jtu.tree_map(lambda g, p: -g - self.strength * p, problem.gradient(params), params)


class MirrorFlow(AbstractFlow):
    """Mirror flow, d∇φ(θ)/dt = −∇L(θ), which is dθ/dt = −[∇²φ(θ)]⁻¹ ∇L(θ).

    From θ₀ it goes, in a linear regression, to the solution that is closest in the Bregman divergence of φ.
    With φ = ½‖θ‖² it is gradient flow; with the φ of [`gflow.bias.Hypentropy`][] it is the path of the
    predictor of a diagonal network.

    The Hessian of φ is formed and factorised in every evaluation: P² numbers in memory for P parameters.
    Where it is not positive definite, as outside of the domain of φ, the field is NaN; the step size control
    then tries shorter steps, and gives up with a status.

    **Arguments:** `potential` is φ, a strictly convex function `(params) -> scalar` of the trainable leaves.

    **Raises:** `ValueError` if it is no function.

    ??? cite "Reference"

        S. Gunasekar, J. Lee, D. Soudry and N. Srebro. Characterizing Implicit Bias in Terms of Optimization
        Geometry. ICML 2018. [arXiv:1802.08246](https://arxiv.org/abs/1802.08246)
    """

    descends: ClassVar[bool] = True

    potential: Callable[[Any], Float[Array, ""]]

    def __check_init__(self):
        if not callable(self.potential):
            raise ValueError(f"potential must be a function (params) -> scalar, but {self.potential!r} came.")

    def vector_field(self, problem, t, params):
        """−[∇²φ(θ)]⁻¹ ∇L(θ)."""
        del t
        theta, unravel = ravel_pytree(params)
        gradient, _ = ravel_pytree(problem.gradient(params))
        hessian = jax.hessian(lambda p: self.potential(unravel(p)))(theta)
        return unravel(-jax.scipy.linalg.solve(hessian, gradient, assume_a="pos"))


class _Field(eqx.Module):
    """A flow and its problem as the function (t, y, args) that diffrax asks for."""

    flow: AbstractFlow
    problem: Problem

    def __call__(self, t, params, args):
        del args
        return self.flow.vector_field(self.problem, t, params)
