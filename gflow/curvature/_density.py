"""The spectral density, by stochastic Lanczos quadrature."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree
from matfree import decomp

from gflow import _numbers
from gflow._problem import Problem
from gflow.curvature._eigenpairs import default_hvps, solve, warn_unless_converged
from gflow.curvature._operators import as_operator, check_finite, on_vectors

_RTOL = 1e-3  # of the eigenpairs left out of the sample; their eigenvalues are far more accurate
_ROUNDING = 30  # couplings below 30 eps ‖A‖ are rounding


class SpectralDensity(eqx.Module):
    """The density φ(λ) = (1/P) Σᵢ δ(λ − λᵢ) of the eigenvalues of an operator, as point masses.

    For a function g, `jnp.sum(weights * g(nodes))` is an estimate of (1/P) tr g(A) = (1/P) Σᵢ g(λᵢ).

    **Attributes:**

    - `nodes`: where the masses are, in units of the eigenvalues.
    - `weights`: the masses; they sum to 1.
    - `hvps`: how many Hessian-vector products this took.
    """

    nodes: Float[Array, "nodes"]
    weights: Float[Array, "nodes"]
    hvps: Int[Array, ""]

    def curve(
        self, width: _numbers.Real | None = None, points: int = 1001
    ) -> tuple[Float[Array, "points"], Float[Array, "points"]]:
        """A grid of λ and the density on it, every mass smoothed to a Gaussian of standard deviation `width`.

        The grid has `points` points, evenly spaced, to four widths beyond the outermost nodes. By default the
        width is 1% of the largest |λ|.
        """
        largest = float(jnp.max(jnp.abs(self.nodes)))
        width = (0.01 * largest or 1.0) if width is None else width
        width = _numbers.positive("width", width, "standard deviation", self.nodes.dtype)
        points = _numbers.count("points", points)
        low, high = jnp.min(self.nodes) - 4 * width, jnp.max(self.nodes) + 4 * width
        grid = jnp.linspace(low, high, points)
        bumps = jax.scipy.stats.norm.pdf(grid[:, None], self.nodes, width)
        return grid, jnp.sum(bumps * self.weights, axis=1)


def spectral_density(
    problem: Problem | lx.AbstractLinearOperator,
    *,
    key: Key[Array, ""],
    params: PyTree[Array] | None = None,
    outliers: int = 20,
    probes: int = 30,
    steps: int = 50,
) -> SpectralDensity:
    """The density of the eigenvalues of the Hessian ∇²L(θ), without any of its P² entries.

    The largest eigenvalues are computed one by one, and have the mass 1/P each. The others are sampled by
    stochastic Lanczos quadrature: from each random vector orthogonal to the eigenvectors of the former (and
    to the other random vectors), Lanczos iterations make a Gaussian quadrature of the density. Without the
    first part, the moments of a spectrum with outliers would be lost in the noise of the second.

    The noise that remains in Σᵢ g(λᵢ) has about the standard deviation √(2/probes) (Σ g(λᵢ)²)^½, where the
    last sum is over the eigenvalues that are sampled; it vanishes as `probes` comes near P.

    **Arguments:**

    - `problem`: the loss surface, or any other symmetric operator.
    - `key`: a JAX random key for the random vectors.
    - `params`: where; by default `problem.params`.
    - `outliers`: how many eigenvalues are computed one by one; 0 for none.
    - `probes`: how many random vectors.
    - `steps`: Lanczos iterations from each, which is the number of nodes too. A fine picture needs more of
        them, and a moment Σ λᵢᵖ only (p + 1)/2, which leaves more products for `probes`.

    The memory is that of outliers + probes + steps vectors of P numbers.

    **Returns:** a [`gflow.curvature.SpectralDensity`][]. A warning says if the largest eigenvalues have not
    converged.

    **Raises:** `ValueError` for numbers that make no sense, and for an operator that gives NaN or infinity.

    ??? cite "References"

        B. Ghorbani, S. Krishnan and Y. Xiao. An Investigation into Neural Net Optimization via Hessian
        Eigenvalue Density. ICML 2019. [arXiv:1901.10159](https://arxiv.org/abs/1901.10159)

        S. Ubaru, J. Chen and Y. Saad. Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature. SIAM J.
        Matrix Anal. Appl. 38 (2017).
    """
    operator = as_operator(problem, params)
    size = operator.in_size()
    outliers = min(_numbers.count("outliers", outliers) if outliers else 0, size)
    probes = min(_numbers.count("probes", probes), size - outliers)
    steps = min(_numbers.count("steps", steps), size - outliers)
    nodes, weights, hvps = [], [], jnp.array(0)
    vectors = jnp.zeros((0, size), jtu.tree_leaves(operator.in_structure())[0].dtype)
    first, second = jax.random.split(key)
    if outliers:
        found = solve(
            operator,
            outliers,
            jnp.ones(1, vectors.dtype),
            rtol=jnp.asarray(_RTOL, vectors.dtype),
            max_hvps=jnp.asarray(default_hvps(outliers)),
            key=first,
        )
        check_finite(found.values)
        warn_unless_converged(found, "the moments may be off; take fewer outliers")
        vectors = jax.vmap(lambda v: ravel_pytree(v)[0])(found.vectors)
        nodes.append(found.values)
        weights.append(jnp.full(outliers, 1 / size))
        hvps += found.hvps
    if steps:
        values, masses = _quadrature(operator, vectors, second, probes, steps)
        nodes.append(jnp.ravel(values))
        weights.append(jnp.ravel(masses) * ((1 - outliers / size) / probes))
        hvps += probes * steps
    density = SpectralDensity(jnp.concatenate(nodes), jnp.concatenate(weights), hvps)
    check_finite(density.nodes)
    return density


@eqx.filter_jit
def _quadrature(
    operator: lx.AbstractLinearOperator, known: Array, key: Key[Array, ""], probes: int, steps: int
) -> tuple[Array, Array]:
    """Nodes and weights of the density in the complement of the rows `known`, for each random vector."""
    matvec, _, zero = on_vectors(operator)
    tridiagonalise = decomp.tridiag_sym(steps, materialize=False, custom_vjp=False)

    def of_probe(z):
        diagonal, off = tridiagonalise(matvec, z).J_small
        # An invariant subspace ends the iterations: what follows is rounding, or NaN of 0/0. The first entry
        # is NaN only if the operator gave it.
        scale = jnp.nanmax(jnp.abs(jnp.concatenate([diagonal, off])))
        holds = jnp.cumprod(off > _ROUNDING * jnp.finfo(z.dtype).eps * scale) > 0
        diagonal = jnp.where(jnp.append(True, holds), diagonal, 0)
        off = jnp.where(holds, off, 0)
        values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1))
        return values, vectors[0] ** 2

    with jax.default_matmul_precision("highest"):
        random = jax.random.normal(key, (zero.size, probes), zero.dtype)
        basis, _ = jnp.linalg.qr(jnp.concatenate([known.T, random], axis=1))
        return lax.map(of_probe, basis[:, known.shape[0] :].T)
