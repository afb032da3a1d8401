import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import Linear, dense_hessian, problem_of, tanh_network

import gflow


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_agrees_with_the_dense_hessian_on_twenty_networks(late):
    indefinite = 0
    for seed in range(20):
        model, data = tanh_network(sizes=(4, 6, 2), examples=12, seed=seed)
        if late:
            model = gflow.descend(model, data, 0.2, 400).model
        problem = problem_of((model, data))
        eigenvalues, vectors = np.linalg.eigh(dense_hessian(problem))
        found = gflow.sharpness(model, data)
        assert found.converged
        np.testing.assert_allclose(found.value, eigenvalues[-1], rtol=1e-6)
        flat = jax.flatten_util.ravel_pytree(found.vector)[0]
        np.testing.assert_allclose(abs(flat @ vectors[:, -1]), 1, rtol=1e-6)
        residual = np.linalg.norm(dense_hessian(problem) @ flat - found.value * flat)
        np.testing.assert_allclose(found.residual, residual, atol=1e-8)
        assert residual <= 1.1e-6 * abs(found.value)
        indefinite += eigenvalues[0] < -0.01 * eigenvalues[-1]
    assert late or indefinite == 20


def quadratic(eigenvalues, seed=0, dtype=np.float64):
    """L(θ) = ½ θᵀAθ with given eigenvalues, as a problem without data."""
    random = np.random.default_rng(seed)
    n = len(eigenvalues)
    q, _ = np.linalg.qr(random.normal(size=(n, n)))
    matrix = jnp.asarray(q @ np.diag(eigenvalues) @ q.T, dtype)
    return gflow.Problem(
        {"θ": jnp.ones(n, dtype)}, matrix, lambda model, a: 0.5 * model["θ"] @ a @ model["θ"]
    )


@pytest.mark.parametrize(
    "dtype, rtol", [pytest.param(np.float32, 1e-4, marks=pytest.mark.slow), (np.float64, 1e-6)]
)
@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.append(np.linspace(-1, 1, 50), -100.0),  # the most negative one is far larger in size
        np.append(np.linspace(-5, -1, 50), -0.3),  # all negative
        np.append(np.linspace(0, 1, 80), [5.0, 5.0, 5.0]),  # repeated at the top
        np.append(np.zeros(60), 2.0),  # rank one
        np.full(20, 3.0),  # a multiple of the identity
        np.array([4.0]),  # one parameter
        np.append(np.linspace(0, 0.99, 300), 1.0),  # no gap
    ],
)
def test_spectra_that_mislead(eigenvalues, dtype, rtol):
    pairs = gflow.curvature.top_eigenpairs(quadratic(eigenvalues, dtype=dtype))
    assert pairs.converged
    np.testing.assert_allclose(pairs.values[0], eigenvalues.max(), rtol=rtol)


def test_zero_hessian():
    found = gflow.sharpness({"w": jnp.ones(5)}, None, loss=lambda model, data: jnp.sum(model["w"]))
    assert float(found.value) == 0 and float(found.residual) == 0 and found.converged


def test_several_eigenpairs():
    eigenvalues = np.append(np.linspace(-3, 1, 60), [2.0, 2.5, 2.5, 4.0])
    problem = quadratic(eigenvalues)
    pairs = gflow.curvature.top_eigenpairs(problem, 5)
    np.testing.assert_allclose(pairs.values, [4.0, 2.5, 2.5, 2.0, 1.0], rtol=1e-6)
    vectors = np.asarray(pairs.vectors["θ"])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(5), atol=1e-8)
    assert np.all(np.asarray(pairs.residuals) <= 1e-5)


def test_budget_that_is_too_small_is_said():
    problem = quadratic(np.append(np.linspace(0, 0.99, 300), 1.0))
    with pytest.warns(UserWarning, match="not converged after 5 Hessian-vector products"):
        pairs = gflow.curvature.top_eigenpairs(problem, max_hvps=5)
    assert not pairs.converged and int(pairs.hvps) <= 5
    matrix = np.asarray(problem.data)
    vector = np.asarray(pairs.vectors["θ"])[0]
    residual = np.linalg.norm(matrix @ vector - float(pairs.values[0]) * vector)
    np.testing.assert_allclose(pairs.residuals[0], residual, rtol=1e-6)


def test_bad_arguments():
    problem = quadratic(np.arange(1.0, 5.0))
    for k in (0, 5, -1):
        with pytest.raises(ValueError, match="k must be a number of eigenpairs from 1 to 4"):
            gflow.curvature.top_eigenpairs(problem, k)
    with pytest.raises(ValueError, match="rtol must lie between"):
        gflow.curvature.top_eigenpairs(problem, rtol=1e-17)
    with pytest.warns(UserWarning, match="bfloat16"):
        half = quadratic(np.arange(1.0, 5.0), dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="float32 or float64.*bfloat16"):
        gflow.curvature.top_eigenpairs(half)


@pytest.mark.slow
def test_as_an_observable_on_both_paths():
    network = tanh_network()
    observe = [gflow.observe.Sharpness(k=3, rtol=1e-7)]
    for traj in (
        gflow.integrate(*network, 6.0, save_at=5, observe=observe, save_models=True),
        gflow.descend(*network, 0.2, 30, save_every=6, observe=observe, save_models=True),
    ):
        problem = problem_of(network)
        for i in range(len(traj.t)):
            params = jax.tree.map(lambda a, i=i: a[i], eqx.filter(traj.models, eqx.is_array))
            dense = np.linalg.eigvalsh(dense_hessian(problem, params))[::-1][:3]
            np.testing.assert_allclose(traj["sharpness"][i], dense, rtol=1e-6)
        assert traj.stats["hvps"] == traj.stats["record_hvps"] > 3 * len(traj.t)
        assert traj["sharpness_residual"].shape == (len(traj.t), 3)
        assert traj["sharpness_hvps"].sum() == traj.stats["hvps"]


@pytest.mark.slow
def test_sharpness_can_stop_a_run():
    # L = (a b − 1)²/2 along a = b: the Hessian is [[b², 2ab−1], [2ab−1, a²]]
    class Product(Linear):
        def __call__(self, x):
            return self.w[0] * self.w[1] * x[0]

    traj = gflow.integrate(
        Product(jnp.array([0.1, 0.1])),
        (np.ones((1, 1)), np.ones(1)),
        50.0,
        observe=[gflow.observe.Sharpness()],
        stop=gflow.stop.Crosses("sharpness", 1.5),
        rtol=1e-9,
        atol=1e-12,
    )
    # with a = b = w the eigenvalues are 3w² − 1 and 1 − w²
    assert traj.status == "stopped"
    np.testing.assert_allclose(traj.model.w, np.sqrt(2.5 / 3), rtol=1e-6)


def test_a_second_call_compiles_nothing():
    from test_integrate import _count_compilations

    model, data = tanh_network(sizes=(5, 8, 3))
    gflow.sharpness(model, data)
    moved = jax.tree.map(lambda a: 1.1 * a if eqx.is_array(a) else a, model)
    with _count_compilations() as compiled:
        gflow.sharpness(moved, data, rtol=1e-3)
        gflow.sharpness(moved, data, max_hvps=50, key=jax.random.key(3))
    assert compiled == []


@pytest.mark.slow
def test_a_record_that_did_not_converge_is_said():
    network = tanh_network()
    with pytest.warns(UserWarning, match="sharpness did not reach its accuracy.*3 of 3 records"):
        traj = gflow.integrate(*network, 1.0, save_at=3, observe=[gflow.observe.Sharpness(max_hvps=2)])
    assert any("sharpness" in sentence for sentence in traj.warnings)
