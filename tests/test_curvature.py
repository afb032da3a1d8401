"""Operators, densities and traces against dense matrices of numpy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from jax.flatten_util import ravel_pytree
from systems import dense_hessian, problem_of, tanh_network

import gflow
from gflow import curvature, losses

SIZES = (4, 6, 3)


@pytest.fixture(scope="module")
def network():
    return tanh_network(SIZES, examples=12)


@pytest.fixture(scope="module")
def dense(network):
    return dense_hessian(problem_of(network))


@eqx.filter_jit
def outputs_and_jacobian(problem):
    """All outputs (n K,) and their Jacobian (n K, P)."""
    flat, unravel = ravel_pytree(problem.params)
    outputs = lambda p: jnp.ravel(jax.vmap(problem.model(unravel(p)))(problem.data[0]))
    return outputs(flat), jax.jacfwd(outputs)(flat)


@eqx.filter_jit
def matrix_of(operator):
    return operator.as_matrix()


def symmetric_operator(matrix):
    return lx.MatrixLinearOperator(jnp.asarray(matrix), lx.symmetric_tag)


def with_spectrum(values, seed=0):
    normal = np.random.default_rng(seed).normal(size=(len(values), len(values)))
    q, _ = np.linalg.qr(normal)
    return (q * np.asarray(values, float)) @ q.T


def test_the_hessian(network, dense):
    problem = gflow.Problem(*network, losses.Squared(), chunk_size=5)
    operator = curvature.hessian(problem)
    assert lx.is_symmetric(operator)
    np.testing.assert_allclose(matrix_of(operator), dense, atol=1e-12)
    moved = jax.tree.map(lambda p: 1.5 * p, problem.params)
    moved_dense = dense_hessian(problem_of(network), moved)
    np.testing.assert_allclose(matrix_of(curvature.hessian(problem, moved)), moved_dense, atol=1e-12)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(moved_dense, dense, atol=1e-3)


def softmax_hessian(f, y):
    p = np.exp(f) / np.sum(np.exp(f))
    return np.diag(p) - np.outer(p, p)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize(
    "loss, output_hessian",
    [
        (losses.Squared(), lambda f, y: np.eye(3)),
        (losses.CrossEntropy(), softmax_hessian),
        (losses.Logistic(), lambda f, y: np.diag(sigmoid(f) * sigmoid(-f))),
        (losses.Exponential(), lambda f, y: np.diag(np.exp(-y * f))),
    ],
    ids=["squared", "cross-entropy", "logistic", "exponential"],
)
def test_the_gauss_newton_matrix(network, loss, output_hessian):
    model, (x, y) = network
    if isinstance(loss, losses.CrossEntropy):
        y = jnp.argmax(y, axis=1)
    elif not isinstance(loss, losses.Squared):
        y = jnp.sign(y)
    problem = gflow.Problem(model, (x, y), loss, chunk_size=5)
    f, jacobian = map(np.asarray, outputs_and_jacobian(problem))
    blocks = zip(jacobian.reshape(12, 3, -1), f.reshape(12, 3), np.asarray(y), strict=True)
    expected = np.mean([j.T @ output_hessian(fi, yi) @ j for j, fi, yi in blocks], axis=0)
    found = curvature.gauss_newton(problem)
    assert lx.is_symmetric(found)
    np.testing.assert_allclose(matrix_of(found), expected, atol=1e-12)


def test_the_functional_hessian(network, dense):
    problem = problem_of(network)
    _, jacobian = outputs_and_jacobian(problem)
    operator = curvature.functional_hessian(problem)
    assert lx.is_symmetric(operator)
    rest = matrix_of(operator)
    np.testing.assert_allclose(rest, dense - jacobian.T @ jacobian / 12, atol=1e-12)
    assert np.linalg.norm(rest) > 0.01


@pytest.mark.parametrize("loss", [lambda model, data: jnp.mean(model.layers[0].weight), None])
def test_gauss_newton_needs_a_loss_of_outputs(network, loss):
    model, (x, y) = network
    loss = loss or losses.Log(losses.CrossEntropy())
    problem = gflow.Problem(model, (x, jnp.argmax(y, axis=1)), loss)
    for split in (curvature.gauss_newton, curvature.functional_hessian):
        with pytest.raises(ValueError, match=r"loss of one output and one target.*(<lambda>|Log)"):
            split(problem)


def test_the_neural_tangent_kernel(network):
    problem = problem_of(network)
    _, jacobian = outputs_and_jacobian(problem)
    kernel = curvature.ntk(problem)
    np.testing.assert_allclose(kernel, jacobian @ jacobian.T, atol=1e-12)
    chunked = curvature.ntk(gflow.Problem(*network, losses.Squared(), chunk_size=5))
    np.testing.assert_allclose(chunked, kernel, atol=1e-12)
    singular = np.linalg.svd(jacobian, compute_uv=False)
    eigenvalues = np.linalg.eigvalsh(kernel)[::-1]
    np.testing.assert_allclose(eigenvalues[: singular.size], singular**2, atol=1e-10)


def test_the_kernel_needs_data_and_a_model():
    problem = gflow.Problem({"w": jnp.ones(2)}, None, lambda model, _: jnp.sum(model["w"]))
    with pytest.raises(ValueError, match="a dict and a NoneType"):
        curvature.ntk(problem)


def chosen(network, where):
    """The positions in the flat parameters of the leaves that `where` gives."""
    params = problem_of(network).params
    flat, unravel = ravel_pytree(params)
    return np.asarray(ravel_pytree(where(unravel(jnp.arange(flat.size))))[0])


def test_blocks(network, dense):
    operator = curvature.hessian(problem_of(network))
    for where in (
        lambda model: model.layers[1],
        lambda model: [model.layers[0].bias, model.layers[1].weight],
    ):
        indices = chosen(network, where)
        block = curvature.block(operator, where)
        assert lx.is_symmetric(block) and block.in_size() == indices.size
        np.testing.assert_allclose(matrix_of(block), dense[np.ix_(indices, indices)], atol=1e-12)
    matrices = curvature.block(operator, jax.tree.map(lambda p: p.ndim == 2, problem_of(network).params))
    structure = matrices.in_structure()
    assert structure.layers[0].bias is None and structure.layers[0].weight.shape == (6, 4)


def test_a_block_of_nothing(network):
    operator = curvature.hessian(problem_of(network))
    for where in (False, lambda model: []):
        with pytest.raises(ValueError, match="where must select at least one of the 4 arrays"):
            curvature.block(operator, where)


def test_preconditioned_curvature(network, dense):
    problem = problem_of(network)
    random = np.random.default_rng(0)
    diagonal = jax.tree.map(lambda p: jnp.asarray(random.uniform(0.01, 2, p.shape)), problem.params)
    operator = curvature.preconditioned(curvature.hessian(problem), diagonal)
    root = np.sqrt(np.asarray(ravel_pytree(diagonal)[0]))
    assert lx.is_symmetric(operator)
    found = matrix_of(operator)
    np.testing.assert_allclose(found, dense / np.outer(root, root), atol=1e-10)
    # the eigenvalues of P^{-1} H
    generalised = scipy.linalg.eigh(dense, np.diag(root**2), eigvals_only=True)
    np.testing.assert_allclose(np.linalg.eigvalsh(found), generalised, atol=1e-10)


def test_a_preconditioner_that_does_not_fit(network):
    operator = curvature.hessian(problem_of(network))
    ones = jax.tree.map(jnp.ones_like, problem_of(network).params)
    for factor in (0, jnp.nan, -1):
        bad = jax.tree.map(lambda p, factor=factor: p.at[..., 0].multiply(factor), ones)
        with pytest.raises(ValueError, match=r"positive and finite, but diagonal.layers\[0\].weight"):
            curvature.preconditioned(operator, bad)
    for other in (jnp.ones(operator.in_size()), jax.tree.map(lambda p: p[0], ones)):
        with pytest.raises(ValueError, match="diagonal must be a PyTree of arrays like the parameters"):
            curvature.preconditioned(operator, other)


@pytest.mark.slow
def test_eigenpairs_of_operators_made_of_operators(network):
    """The preconditioned block of the Gauss-Newton matrix that belongs to one layer."""
    problem = problem_of(network)
    _, jacobian = outputs_and_jacobian(problem)
    indices = chosen(network, lambda model: model.layers[0])
    block = curvature.block(curvature.gauss_newton(problem), lambda model: model.layers[0])
    random = np.random.default_rng(1)
    diagonal = jax.tree.map(lambda s: jnp.asarray(random.uniform(0.5, 2, s.shape)), block.in_structure())
    pairs = curvature.top_eigenpairs(curvature.preconditioned(block, diagonal), 3)
    inside = jacobian[:, indices] / np.sqrt(ravel_pytree(diagonal)[0])
    singular = np.linalg.svd(inside, compute_uv=False)
    assert pairs.converged
    np.testing.assert_allclose(pairs.values, singular[:3] ** 2 / 12, rtol=1e-6)
    assert pairs.vectors.layers[0].weight.shape == (3, 6, 4) and pairs.vectors.layers[1].weight is None


@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.append(np.linspace(-1, 1, 50), [-30.0, -30.0, -20.0, 7.0, 6.0, 6.0]),
        np.append(np.linspace(1, 2, 54), [0.1, 0.5]),
        np.zeros(56),
        np.full(56, -3.0),
        np.append(np.zeros(50), [3.0, 2.0, 1.0, -1.0, -2.0, -3.0]),
        np.append(np.zeros(30), np.linspace(0.01, 1, 26)),  # the smallest are zero
    ],
    ids=["indefinite", "positive", "zero", "identity", "low rank", "semidefinite"],
)
def test_both_ends_of_the_spectrum(eigenvalues):
    matrix = with_spectrum(eigenvalues)
    descending = np.sort(eigenvalues)[::-1]
    for which, expected in {
        "smallest": descending[-3:],
        "both": np.append(descending[:3], descending[-3:]),
    }.items():
        pairs = curvature.top_eigenpairs(symmetric_operator(matrix), 3, which=which)
        assert pairs.converged
        np.testing.assert_allclose(pairs.values, expected, rtol=1e-6, atol=1e-12)
        vectors = np.asarray(pairs.vectors)
        residuals = np.linalg.norm(vectors @ matrix - np.asarray(pairs.values)[:, None] * vectors, axis=1)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-10)
        np.testing.assert_allclose(pairs.residuals, residuals, atol=1e-10)
        assert np.all(residuals <= 1e-6 * np.abs(expected) + 1e-10)


def test_an_operator_that_gives_nan():
    broken = symmetric_operator(np.full((56, 56), np.nan))
    with pytest.warns(UserWarning, match="the operator gave NaN or infinity after 2 Hessian-vector products"):
        pairs = curvature.top_eigenpairs(broken, 3, which="both")
    assert not pairs.converged and np.all(np.isnan(pairs.values))


def test_a_budget_that_one_end_needs_more_than():
    matrix = with_spectrum(np.append(np.linspace(0, 1, 53), [10.0, 20.0, 30.0]))
    with pytest.warns(UserWarning, match="not converged after"):
        pairs = curvature.top_eigenpairs(symmetric_operator(matrix), 3, which="both", max_hvps=20)
    assert not pairs.converged and 20 < pairs.hvps <= 40
    vectors, values = np.asarray(pairs.vectors), np.asarray(pairs.values)
    residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(pairs.residuals, residuals, rtol=1e-6, atol=1e-9)


def test_eigenpairs_that_make_no_sense(network, key):
    operator = curvature.hessian(problem_of(network))
    size = operator.in_size()
    for k, which in ((size + 1, "largest"), (size + 1, "smallest"), (size // 2 + 1, "both"), (0, "both")):
        with pytest.raises(ValueError, match="k must be a number of eigenpairs from 1"):
            curvature.top_eigenpairs(operator, k, which=which)
    with pytest.raises(ValueError, match="params must be left out"):
        curvature.top_eigenpairs(operator, params=problem_of(network).params)
    for function in (curvature.top_eigenpairs, curvature.trace, curvature.spectral_density):
        with pytest.raises(ValueError, match="symmetric operator, but this MatrixLinearOperator"):
            function(lx.MatrixLinearOperator(jnp.eye(3)), key=key)
        with pytest.raises(ValueError, match="float32 or float64, but they are float16"):
            function(lx.IdentityLinearOperator(jax.ShapeDtypeStruct((3,), jnp.float16)), key=key)


@pytest.mark.slow
def test_another_point_compiles_nothing(network, key):
    from test_integrate import _count_compilations

    def all_of(params):
        operator = curvature.hessian(problem_of(network), params)
        curvature.top_eigenpairs(operator, 2, which="both")
        curvature.spectral_density(operator, key=key, outliers=2, probes=2, steps=5)
        curvature.trace(operator, key=key)
        curvature.ntk(problem_of(network), params)

    params = problem_of(network).params
    elsewhere = jax.tree.map(lambda p: 1.1 * p, params)
    all_of(params)
    with _count_compilations() as compiled:
        all_of(elsewhere)
    assert compiled == []


def moments(density):
    return [float(jnp.sum(density.weights * density.nodes**p)) for p in (1, 2, 3, 4)]


def moments_of_matrix(matrix):
    square = matrix @ matrix
    sums = [np.trace(matrix), np.sum(matrix**2), np.sum(square * matrix), np.sum(square**2)]
    return np.array(sums) / len(matrix)


@pytest.mark.slow
def test_moments_of_the_density_of_a_network(key):
    network = tanh_network((16, 36, 36, 6), examples=60, seed=0)
    problem = problem_of(network)
    assert problem.size == 2166
    trained = eqx.filter(gflow.descend(*network, 0.3, 100).model, eqx.is_inexact_array)
    options = {"key": key, "outliers": 50}
    dense = dense_hessian(problem, trained)
    density = curvature.spectral_density(problem, params=trained, probes=200, steps=10, **options)
    np.testing.assert_allclose(moments(density), moments_of_matrix(dense), rtol=0.02)
    found = curvature.trace(problem, params=trained, key=key, probes=200)
    np.testing.assert_allclose(found.value, np.trace(dense), rtol=0.02)
    assert abs(found.value - np.trace(dense)) <= 4 * found.standard_error
    assert found.hvps == 401
    # At the start the trace is small, because the spectrum has both signs: it takes far more vectors.
    density = curvature.spectral_density(problem, probes=1500, steps=8, **options)
    np.testing.assert_allclose(moments(density), moments_of_matrix(dense_hessian(problem)), rtol=0.02)


ODD_SPECTRA = {
    "zero": np.zeros(300),
    "identity": np.ones(300),
    "low rank": np.append(np.zeros(295), [1, 2, 2, 3, 4]),
    "tiny": 1e-12 * np.append(np.linspace(-0.1, 0.1, 280), np.arange(20.0)),
    "huge": 1e12 * np.append(np.linspace(-0.1, 0.1, 280), np.arange(20.0)),
}


@pytest.mark.parametrize("eigenvalues", ODD_SPECTRA.values(), ids=ODD_SPECTRA)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.slow
def test_densities_and_traces_of_odd_spectra(eigenvalues, dtype, key):
    operator = symmetric_operator(with_spectrum(eigenvalues).astype(dtype))
    size = np.max(np.abs(eigenvalues)) or 1.0
    density = curvature.spectral_density(operator, key=key, outliers=20, steps=40)
    nodes, weights = np.float64(density.nodes), np.float64(density.weights)
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-5)
    assert np.max(np.abs(nodes)) <= (1 + 1e-4) * size
    for p in (1, 2, 3, 4):
        expected = np.mean((eigenvalues / size) ** p)
        np.testing.assert_allclose(np.sum(weights * (nodes / size) ** p), expected, rtol=0.01, atol=1e-5)
    grid, curve = density.curve()
    np.testing.assert_allclose(np.sum(curve) * (grid[1] - grid[0]), 1, rtol=1e-3)
    found = curvature.trace(operator, key=key, probes=40)
    np.testing.assert_allclose(found.value, np.sum(eigenvalues), rtol=5e-3, atol=1e-4 * size)


@pytest.mark.slow
def test_the_density_and_trace_of_nan(key):
    broken = symmetric_operator(np.full((300, 300), np.nan, np.float32))
    with pytest.raises(ValueError, match="gave NaN or infinity"):
        curvature.trace(broken, key=key, probes=40)
    with pytest.raises(ValueError, match="gave NaN or infinity"):
        curvature.spectral_density(broken, key=key, outliers=20, steps=40)


@pytest.mark.slow
def test_outliers_that_have_not_converged_are_said(key):
    # largest eigenvalues next to zero, which the others dwarf
    operator = lx.TaggedLinearOperator(
        lx.DiagonalLinearOperator(-jnp.logspace(-9, 0, 2000)), lx.symmetric_tag
    )
    with pytest.warns(UserWarning, match="not converged after 1100 Hessian-vector .*take fewer outliers"):
        density = curvature.spectral_density(operator, key=key, outliers=1, probes=2, steps=3)
    np.testing.assert_allclose(jnp.sum(density.weights), 1, rtol=1e-12)


@pytest.mark.slow
def test_small_operators_are_solved_exactly(key):
    operator = symmetric_operator(with_spectrum([3.0, 1.0, -2.0]))
    found = curvature.trace(operator, key=key)
    np.testing.assert_allclose(found.value, 2, rtol=1e-12)
    assert found.standard_error < 1e-12 and found.hvps == 4
    density = curvature.spectral_density(operator, key=key)
    np.testing.assert_allclose(density.nodes, [3, 1, -2], rtol=1e-8)
    np.testing.assert_allclose(density.weights, 1 / 3)
    for outliers in (0, 2):
        sampled = curvature.spectral_density(operator, key=key, outliers=outliers, probes=1)
        np.testing.assert_allclose(np.sort(sampled.nodes), [-2, 1, 3], rtol=1e-6)


def test_the_curve_of_a_density():
    density = curvature.SpectralDensity(jnp.array([-1.0, 2.0]), jnp.array([0.25, 0.75]), jnp.array(1))
    grid, curve = density.curve(width=0.5, points=301)
    expected = 0.25 * scipy.stats.norm.pdf(grid, -1, 0.5) + 0.75 * scipy.stats.norm.pdf(grid, 2, 0.5)
    np.testing.assert_allclose(curve, expected, rtol=1e-10)
    np.testing.assert_allclose([grid[0], grid[-1]], [-3, 4])
    for width in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="width must be a positive finite"):
            density.curve(width)


def test_bad_numbers(network, key):
    problem = problem_of(network)
    for name in ("probes", "steps", "outliers"):
        with pytest.raises(ValueError, match=f"{name} must be a positive integer, but -1 came"):
            curvature.spectral_density(problem, key=key, **{name: -1})
    with pytest.raises(ValueError, match="probes must be at least 2"):
        curvature.trace(problem, key=key, probes=1)
