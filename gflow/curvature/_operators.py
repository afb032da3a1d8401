"""The Hessian as a linear operator, and the operators made of others: blocks and preconditioning."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from gflow import _tree
from gflow._problem import Problem


def hessian(problem: Problem, params: PyTree[Array] | None = None) -> lx.AbstractLinearOperator:
    """The Hessian H = ∇²L(θ) as a symmetric [lineax](https://docs.kidger.site/lineax/) operator.

    `hessian(problem).mv(v)` is a Hessian-vector product, for `v` a PyTree like the parameters; it costs about
    two gradients, and is accumulated over chunks of examples if the problem has a `chunk_size`.
    `.as_matrix()` is the dense (P, P) matrix. Operators can be added and scaled, solved with
    `lineax.linear_solve`, and passed through `jax.jit`.

    **Arguments:** the `problem`, and `params`, where on it; by default `problem.params`.
    """
    params = problem.params if params is None else params
    if problem.chunk_size is not None:  # then the examples' activations mustn't all be kept
        return symmetric(jtu.Partial(Problem.hvp, problem, params), params)
    return lx.JacobianLinearOperator(
        _Here(jtu.Partial(_gradient)), params, problem, lx.symmetric_tag, closure_convert=False
    )


def block(
    operator: lx.AbstractLinearOperator, where: Callable[[PyTree], PyTree] | PyTree[bool]
) -> lx.FunctionLinearOperator:
    """The diagonal block S A Sᵀ of an operator A that belongs to some of the parameters, say to one layer.

    It acts on PyTrees like the parameters with `None` in place of what isn't selected.

    **Arguments:**

    - `operator`: A, such as [`gflow.curvature.hessian`][] or [`gflow.curvature.gauss_newton`][] give it.
    - `where`: what is selected: a function from the parameters to one or several parts of them, as for
        `equinox.tree_at`, for example `lambda model: model.layers[0]`; or a PyTree of booleans that is a
        prefix of the parameters, as for `equinox.filter`.

    Its products cost as much as those of A. [`gflow.Problem`][] with `trainable=` has cheaper ones, of the
    Hessian of the same block.

    **Raises:** `ValueError` if nothing is selected.
    """
    structure = operator.in_structure()
    spec = where
    # A tree of booleans may be callable too: it looks like the model.
    if not all(isinstance(leaf, bool) for leaf in jtu.tree_leaves(where)):
        nothing = jtu.tree_map(lambda _: False, structure)
        spec = eqx.tree_at(where, nothing, replace_fn=lambda part: jtu.tree_map(lambda _: True, part))
    selected = eqx.filter(structure, spec)
    if not jtu.tree_leaves(selected):
        raise ValueError(
            f"where must select at least one of the {len(jtu.tree_leaves(structure))} arrays of parameters, "
            "but selects none; write for example where=lambda model: model.layers[0]."
        )
    return symmetric(jtu.Partial(_restricted, operator), selected)


def preconditioned(operator: lx.AbstractLinearOperator, diagonal: PyTree[Array]) -> lx.TaggedLinearOperator:
    """P^{-1/2} A P^{-1/2}, the curvature A as an optimiser with the diagonal preconditioner P meets it.

    It is symmetric and has the eigenvalues of P⁻¹A. Descent θ ← θ − η P⁻¹∇L is linearly unstable where the
    largest one exceeds 2/η. The P of RMSProp and Adam are those of [`gflow.stability.RMSProp`][] and
    [`gflow.stability.Adam`][]; Adam's momentum changes the threshold, too.

    **Arguments:** the `operator` A, such as [`gflow.curvature.hessian`][] gives it, and `diagonal`: the
    diagonal of P, positive, a PyTree like the parameters.

    **Raises:** `ValueError` if the two don't fit together, or if P isn't positive and finite.

    ??? cite "Reference"

        J. Cohen, B. Ghorbani, S. Krishnan, N. Agarwal, S. Medapati, M. Badura, D. Suo, D. Cardoze, Z. Nado,
        G. Dahl and J. Gilmer. Adaptive Gradient Methods at the Edge of Stability.
        [arXiv:2207.14484](https://arxiv.org/abs/2207.14484)
    """
    structure = operator.in_structure()
    given = jax.eval_shape(lambda: diagonal)
    if jtu.tree_map(jnp.shape, given) != jtu.tree_map(jnp.shape, structure):
        raise ValueError(
            "diagonal must be a PyTree of arrays like the parameters that the operator acts on, "
            f"{_shown(structure)}, but is {_shown(given)}."
        )
    for path, leaf in jtu.tree_leaves_with_path(diagonal):
        if not _tree.is_traced(leaf) and not np.all((leaf > 0) & np.isfinite(leaf)):
            raise ValueError(
                f"diagonal must be positive and finite, but diagonal{jtu.keystr(path)} is not; add the "
                "optimiser's ε to it."
            )
    root = lx.DiagonalLinearOperator(jtu.tree_map(lambda p: 1 / jnp.sqrt(p), diagonal))
    return lx.TaggedLinearOperator(root @ operator @ root, lx.symmetric_tag)


def symmetric(product: Callable[[PyTree], PyTree], like: PyTree) -> lx.FunctionLinearOperator:
    """The linear function `product` as a symmetric operator on PyTrees like `like`.

    `product` is a PyTree and not a closure, which would be compiled again wherever the operator is passed to.
    """
    return lx.FunctionLinearOperator(_Here(product), like, lx.symmetric_tag, closure_convert=False)


class _Here(eqx.Module):
    """A function that is another one where devices work each for itself, inside of `jax.shard_map`.

    Equinox keeps what a function returns by the shapes of what it takes, but the result differs there.
    """

    function: Callable
    mesh: Any = eqx.field(static=True, default_factory=jax.sharding.get_abstract_mesh)

    def __call__(self, *arguments: PyTree) -> PyTree:
        return self.function(*arguments)


def as_operator(
    problem: Problem | lx.AbstractLinearOperator, params: PyTree[Array] | None
) -> lx.AbstractLinearOperator:
    """The Hessian of a problem, or an operator itself, checked to be something that has eigenvalues."""
    if isinstance(problem, Problem):
        operator = hessian(problem, params)
    elif isinstance(problem, lx.AbstractLinearOperator):
        operator = problem
        if params is not None:
            raise ValueError("params must be left out with an operator, which belongs to certain parameters.")
        if not lx.is_symmetric(operator):
            raise ValueError(
                f"problem must be a symmetric operator, but this {type(operator).__name__} is not marked as "
                "such; if it is symmetric, wrap it as lineax.TaggedLinearOperator(operator, "
                "lineax.symmetric_tag)."
            )
    else:
        raise ValueError(
            "problem must be a gflow.Problem or a symmetric lineax operator, but is a "
            f"{type(problem).__name__}; gflow.Problem(model, data, loss) makes one."
        )
    check_dtype(operator.in_structure())
    return operator


def on_vectors(
    operator: lx.AbstractLinearOperator,
) -> tuple[Callable[[Array], Array], Callable[[Array], PyTree[Array]], Float[Array, "P"]]:
    """The operator as a function of flat vectors, how to unravel one, and the zero vector."""
    zeros = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), operator.in_structure())
    zero, unravel = ravel_pytree(zeros)
    return lambda v: _tree.vector(operator.mv(unravel(v))), unravel, zero


def check_dtype(params: PyTree) -> None:
    """Raises `ValueError` unless the parameters, or their shapes and dtypes, can resolve eigenvalues."""
    dtypes = {leaf.dtype for leaf in jtu.tree_leaves(params)}
    if not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)} or len(dtypes) > 1:
        raise ValueError(
            "problem must have parameters in float32 or float64, but they are "
            f"{' and '.join(sorted(map(str, dtypes)))}, which can't resolve eigenvalues; cast the model."
        )


def check_finite(numbers: Array) -> None:
    """Raises `ValueError` unless all numbers that came out of an operator are finite."""
    if not _tree.is_traced(numbers) and not np.all(np.isfinite(numbers)):
        raise ValueError(
            "problem must have a finite Hessian, but a Hessian-vector product gave NaN or infinity; check "
            "the parameters and the loss."
        )


def _gradient(params: PyTree[Array], problem: Problem) -> PyTree[Array]:
    return problem.gradient(params)


def _restricted(operator: lx.AbstractLinearOperator, v: PyTree[Array]) -> PyTree[Array]:
    """S A Sᵀ v, where S takes the leaves in the places where `v` has some."""
    zeros = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), operator.in_structure())
    product = operator.mv(eqx.combine(v, zeros))
    return jtu.tree_map(lambda a, b: None if a is None else b, v, product, is_leaf=lambda x: x is None)


def _shown(structure: PyTree) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jtu.tree_leaves(structure)) or "(none)"
