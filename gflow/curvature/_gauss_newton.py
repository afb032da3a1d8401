"""The Gauss-Newton matrix, and the rest of the Hessian."""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, PyTree

from gflow import losses
from gflow._problem import Problem
from gflow.curvature._operators import hessian, symmetric


def gauss_newton(problem: Problem, params: PyTree[Array] | None = None) -> lx.FunctionLinearOperator:
    """The Gauss-Newton matrix G = (1/n) Σᵢ Jᵢᵀ Hᵢ Jᵢ as a symmetric lineax operator.

    Jᵢ is the Jacobian of the output f(xᵢ; θ) with respect to the parameters and Hᵢ the Hessian of the loss
    ℓ(f, yᵢ) with respect to the output. G is the Hessian of the loss of the model linearised in its
    parameters, positive semidefinite for a loss convex in the output. For the cross-entropy it is the Fisher
    information matrix too.

    **Arguments:** the `problem`, and `params`, where on it; by default `problem.params`.

    **Raises:** `ValueError` if the loss is no [`gflow.losses.AbstractLoss`][]: of any other callable it can't
    be told what the output is.

    ??? cite "Reference"

        N. Schraudolph. Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent. Neural
        Computation 14 (2002).
    """
    if not isinstance(problem.loss, losses.AbstractLoss):
        name = getattr(problem.loss, "__name__", type(problem.loss).__name__)
        raise ValueError(
            "problem must have a loss of one output and one target, such as those of gflow.losses, for the "
            f"Gauss-Newton matrix, but has the loss {name}; write it as a subclass of "
            "gflow.losses.AbstractLoss."
        )
    params = problem.params if params is None else params
    return symmetric(jtu.Partial(_product, problem, params), params)


def functional_hessian(problem: Problem, params: PyTree[Array] | None = None) -> lx.AbstractLinearOperator:
    """What the Gauss-Newton matrix leaves of the Hessian, F = ∇²L − G, as a symmetric lineax operator.

    F = (1/n) Σᵢₖ (∂ℓ/∂fₖ)(xᵢ) ∇²fₖ(xᵢ; θ): it vanishes for a model that is linear in its parameters, and
    under the squared error where the data are fitted. Its spectrum has both signs.

    **Arguments, Raises:** as for [`gflow.curvature.gauss_newton`][].
    """
    return hessian(problem, params) - gauss_newton(problem, params)


def _product(problem: Problem, params: PyTree[Array], v: PyTree[Array]) -> PyTree[Array]:
    loss = problem.loss
    assert isinstance(loss, losses.AbstractLoss)

    def of_chunk(data):
        x, y = data

        def outputs_of(p):
            return jax.vmap(problem.model(p))(x)

        def loss_of(outputs):
            return jnp.mean(jax.vmap(loss.per_example)(outputs, y))

        outputs, pull_back = jax.vjp(outputs_of, params)
        tangents = jax.jvp(outputs_of, (params,), (v,))[1]
        return pull_back(jax.jvp(jax.grad(loss_of), (outputs,), (tangents,))[1])[0]

    return problem.mean(of_chunk)
