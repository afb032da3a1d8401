"""The empirical neural tangent kernel."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gflow._problem import Problem


def ntk(problem: Problem, params: PyTree[Array] | None = None) -> Float[Array, "outputs outputs"]:
    """The empirical neural tangent kernel Θ = J Jᵀ on the data, for small problems.

    J is the Jacobian of all outputs f(xᵢ; θ) with respect to the parameters, one row for each output of each
    example, the outputs of one example in a row. There is no factor 1/n: under the squared error, the
    gradient flow of the loss moves the outputs as df/dt = −Θ (f − y)/n, and the Gauss-Newton matrix has the
    nonzero eigenvalues of Θ/n. The eigenvalues of Θ are `jnp.linalg.eigvalsh(ntk(problem))`.

    **Arguments:** the `problem`, whose data are (x, y), and `params`, where on it; by default
    `problem.params`. The Jacobian is computed for `chunk_size` examples at a time, but kept.

    **Returns:** a symmetric positive semidefinite matrix of n·K rows for n examples with K outputs, for n·K
    gradients of one example and memory O(n·K·(P + n·K)).

    **Raises:** `ValueError` if the data are no (x, y), or the model can't be called on one example.

    ??? cite "Reference"

        A. Jacot, F. Gabriel and C. Hongler. Neural Tangent Kernel: Convergence and Generalization in Neural
        Networks. NeurIPS 2018. [arXiv:1806.07572](https://arxiv.org/abs/1806.07572)
    """
    model = problem.model(problem.params)
    if not callable(model) or not isinstance(problem.data, tuple) or len(problem.data) != 2:
        raise ValueError(
            "problem must have a model that can be called on one example and data (x, y) for the neural "
            f"tangent kernel, but has a {type(model).__name__} and a {type(problem.data).__name__}."
        )
    return _ntk(problem, problem.params if params is None else params)


@eqx.filter_jit
def _ntk(problem: Problem, params: PyTree[Array]) -> Array:
    def rows(x):
        jacobian = jax.jacrev(lambda p: jnp.ravel(problem.model(p)(x)))(params)
        blocks = [j.reshape(j.shape[0], -1) for j in jax.tree.leaves(jacobian)]
        return jnp.concatenate(blocks, axis=1)

    with jax.default_matmul_precision("highest"):
        jacobians = jax.lax.map(rows, problem.data[0], batch_size=problem.chunk_size or problem.examples)
        flat = jacobians.reshape(-1, jacobians.shape[-1])
        return flat @ flat.T
