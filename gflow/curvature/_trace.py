"""The trace of the Hessian, from a few products with it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Int, Key, PyTree
from matfree import stochtrace

from gflow import _numbers, _tree
from gflow._problem import Problem
from gflow.curvature._operators import as_operator, check_finite, on_vectors


class TraceEstimate(eqx.Module):
    """An estimate of a trace.

    **Attributes:**

    - `value`: the estimate of tr A.
    - `standard_error`: of the value, estimated; 0 if the trace is exact.
    - `hvps`: how many Hessian-vector products this took.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    hvps: Int[Array, ""]


def trace(
    problem: Problem | lx.AbstractLinearOperator,
    *,
    key: Key[Array, ""],
    params: PyTree[Array] | None = None,
    probes: int = 20,
) -> TraceEstimate:
    """The trace tr ∇²L(θ) of the Hessian, the sum of its eigenvalues, by the estimator XTrace.

    A random subspace of `probes` dimensions takes up the largest eigenvalues, random vectors estimate what is
    left; where the former dominate this is far more accurate than random vectors alone.

    **Arguments:**

    - `problem`: the loss surface, or any other symmetric operator.
    - `key`: a JAX random key for the random vectors.
    - `params`: where; by default `problem.params`.
    - `probes`: how many random vectors, at least 2. They are multiplied all at once: the memory is that of as
        many Hessian-vector products.

    **Returns:** a [`gflow.curvature.TraceEstimate`][], exact if `probes` is at least half the number of
    parameters.

    **Raises:** `ValueError` for numbers that make no sense, and for an operator that gives NaN or infinity.

    ??? cite "Reference"

        E. Epperly, J. Tropp and R. Webber. XTrace: Making the Most of Every Sample in Stochastic Trace
        Estimation. SIAM J. Matrix Anal. Appl. 45 (2024). [arXiv:2301.07825](https://arxiv.org/abs/2301.07825)
    """
    operator = as_operator(problem, params)
    size = operator.in_size()
    if _numbers.count("probes", probes) < 2:
        raise ValueError(f"probes must be at least 2 random vectors, but {probes!r} came.")
    probes = min(probes, size)
    value, error = _xtrace(operator, key, probes)
    check_finite(value)
    return TraceEstimate(value, error, jnp.array(1 + min(2 * probes, size)))


@eqx.filter_jit
def _xtrace(operator: lx.AbstractLinearOperator, key: Key[Array, ""], probes: int) -> tuple[Array, Array]:
    matvec, _, zero = on_vectors(operator)
    first, second = jax.random.split(key)
    # The test of XTrace for a low rank takes A to be of the size of 1: a Hessian of 1e-12 would fail it.
    vector = jax.random.normal(first, zero.shape, zero.dtype)
    size = _tree.norm(matvec(vector)) / _tree.norm(vector)
    size = jnp.where(size > 0, size, 1)
    estimate = stochtrace.estimator_leave_one_out_mean_and_sem(
        stochtrace.leave_one_out_xtrace(), stochtrace.sampler_normal(zero, num=probes)
    )
    with jax.default_matmul_precision("highest"):
        value, error = estimate(lambda v: matvec(v) / size, second)
    return size * value, size * error
