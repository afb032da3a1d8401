"""Models against brute force: their action on unit vectors, loops, closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import deep_scalar_time

import gflow
from gflow import models

random = np.random.default_rng(0)
KEY = jax.random.key(0)


def action(model, size):
    """The linear map of a model, one unit vector after the other."""
    return np.stack([np.asarray(model(jnp.asarray(e))) for e in np.eye(size)], axis=-1)


@pytest.mark.parametrize(
    "model",
    [
        models.DeepLinear.normal((4, 3, 5, 2), 1.0, key=KEY),
        models.DeepLinear.identity(4, 3, 0.5),
        models.Convolutional.normal(4, 3, 1.0, key=KEY),
        models.Diagonal(jnp.asarray(random.normal(size=4)), jnp.asarray(random.normal(size=4)), 3),
        models.Diagonal.constant(4, 0.3, 3, signed=False),
        models.UnsharedDiagonal(jnp.asarray(random.normal(size=(3, 4)))),
        models.UnsharedDiagonal(*jnp.asarray(random.normal(size=(2, 2, 4)))),
        models.UnsharedDiagonal.constant(4, (2.0, 0.1, 3.0), signed=False),
        models.Neuron(jnp.array([0.3, -1.0, 2.0, 0.1]), jnp.asarray(1.7), lambda z: z),
    ],
    ids=lambda model: type(model).__name__,
)
def test_effective_predictors_are_what_the_model_does(model):
    np.testing.assert_allclose(model.effective(), action(model, 4), rtol=1e-12, atol=1e-14)
    x = jnp.asarray(random.normal(size=4))
    np.testing.assert_allclose(model(x), model.effective() @ x, rtol=1e-12)


def test_effective_predictors_in_closed_form():
    a, b, c = (random.normal(size=s) for s in [(3, 4), (5, 3), (1, 5)])
    deep = models.DeepLinear([jnp.asarray(m) for m in (a, b, c)])
    np.testing.assert_allclose(deep.effective(), c @ b @ a, rtol=1e-12)
    assert deep(jnp.ones(4)).shape == ()
    u, v = random.normal(size=(2, 4))
    np.testing.assert_allclose(models.Diagonal(jnp.asarray(u), jnp.asarray(v), 3).effective(), u**3 - v**3)
    both = models.UnsharedDiagonal(jnp.asarray([u, v]), jnp.asarray([v, v]))
    np.testing.assert_allclose(both.effective(), u * v - v * v, rtol=1e-12)
    np.testing.assert_array_equal(models.Diagonal.constant(3, 0.1).effective(), 0)
    np.testing.assert_allclose(models.Diagonal.constant(3, 0.1, 4, signed=False).effective(), 1e-4)


def test_circular_convolutions_by_loops():
    filters, x = random.normal(size=(3, 5)), random.normal(size=5)
    hidden = x
    for u in filters[:-1]:
        hidden = np.array([sum(u[j] * hidden[(k + j) % 5] for j in range(5)) for k in range(5)])
    model = models.Convolutional(jnp.asarray(filters))
    assert float(model(jnp.asarray(x))) == pytest.approx(filters[-1] @ hidden, rel=1e-12)


def test_measurements_of_matrices():
    factors = [random.normal(size=s) for s in [(3, 4), (4, 4), (4, 5)]]
    product = factors[0] @ factors[1] @ factors[2]
    model = models.Factorisation([jnp.asarray(f) for f in factors])
    a = random.normal(size=(3, 5))
    assert float(model(jnp.asarray(a))) == pytest.approx(np.sum(a * product), rel=1e-12)
    assert float(model(jnp.array([2, 4]))) == pytest.approx(product[2, 4], rel=1e-12)
    np.testing.assert_allclose(models.Factorisation.identity(3, 3, 0.1).effective(), 1e-3 * np.eye(3))
    u = random.normal(size=(3, 2))
    symmetric = models.SymmetricFactorisation(jnp.asarray(u))
    assert float(symmetric(jnp.array([0, 2]))) == pytest.approx(u[0] @ u[2], rel=1e-12)
    np.testing.assert_allclose(models.SymmetricFactorisation.identity(3, 0.1).effective(), 1e-2 * np.eye(3))


def test_quadratic_networks():
    model = models.Quadratic.orthogonal(4, 0.1, key=KEY, bias=2.0)
    np.testing.assert_allclose(model.effective(), 1e-2 * np.eye(4), atol=1e-15)
    x = random.normal(size=4)
    assert float(model(jnp.asarray(x))) == pytest.approx(2 + 1e-2 * x @ x, rel=1e-12)
    assert models.Quadratic.orthogonal(4, 0.1, key=KEY).b is None


def test_neurons():
    w, x = random.normal(size=(2, 3))
    plain = models.Neuron(jnp.asarray(w), activation=jnp.tanh)
    assert float(plain(jnp.asarray(x))) == pytest.approx(np.tanh(w @ x), rel=1e-12)
    assert float(models.Neuron(jnp.asarray(w), jnp.asarray(-2.0))(jnp.asarray(x))) == pytest.approx(
        -2 * max(w @ x, 0), rel=1e-12
    )
    drawn = models.Neuron.normal(1000, 2.0, key=KEY, activation=jnp.tanh)
    assert drawn.a is None and 0.9 < float(jnp.linalg.norm(drawn.w)) / 2 < 1.1
    drawn = models.Neuron.balanced(7, 2.0, key=KEY)
    assert float(jnp.linalg.norm(drawn.w)) == pytest.approx(float(drawn.a), rel=1e-12) == 2.0
    net = models.TwoLayer.features(100, 50, key=KEY)
    assert 0.9 < float(jnp.sum(net.w**2)) / 50 < 1.1 and net.v.shape == (50,) and not np.any(net.v)
    net = models.TwoLayer.balanced(3, 40, 2.0, key=KEY, slope=0.2)
    w, v = np.asarray(net.w), np.asarray(net.v)
    np.testing.assert_allclose(np.abs(v), np.linalg.norm(w, axis=1), rtol=1e-12)
    assert 0.5 < np.mean(np.sum(w**2, axis=1)) / 4 < 1.5 and abs(np.mean(np.sign(v))) < 0.6
    z = w @ x
    assert float(net(jnp.asarray(x))) == pytest.approx(v @ np.maximum(z, 0.2 * z), rel=1e-12)


def test_a_linearised_model_is_the_taylor_polynomial():
    w, a, x = random.normal(size=3), 1.5, random.normal(size=3)
    model = models.Linearised(models.Neuron(jnp.asarray(w), jnp.asarray(a), jnp.tanh))
    delta, da = random.normal(size=3), 0.7
    moved = eqx.tree_at(
        lambda m: (m.displacement.w, m.displacement.a), model, (jnp.asarray(delta), jnp.asarray(da))
    )
    t = np.tanh(w @ x)
    expected = a * t + da * t + a * (1 - t**2) * (delta @ x)
    assert float(moved(jnp.asarray(x))) == pytest.approx(expected, rel=1e-12)
    problem = gflow.Problem(model, (x[None], np.ones(1)), trainable=model.trainable)
    assert problem.size == 4


def test_the_flow_of_the_linearised_model_is_that_of_its_kernel():
    # f(x; t) = f₀ + (1 − exp(−tK/n))(y − f₀) on the data, with K the tangent kernel
    x, y = random.normal(size=(3, 2)), random.normal(size=3)
    neuron = models.Neuron(jnp.asarray([0.5, -0.3]), jnp.asarray(0.8), jnp.tanh)
    model = models.Linearised(neuron)
    traj = gflow.integrate(model, (x, y), 2.0, trainable=model.trainable, rtol=1e-9, atol=1e-12)
    w, a = np.asarray(neuron.w), 0.8
    t = np.tanh(x @ w)
    jacobian = np.column_stack([a * (1 - t**2)[:, None] * x, t])
    values, vectors = np.linalg.eigh(jacobian @ jacobian.T / 3)
    residual = vectors @ (np.exp(-2.0 * values) * (vectors.T @ (a * t - y)))
    np.testing.assert_allclose(jax.vmap(traj.model)(jnp.asarray(x)) - y, residual, rtol=1e-7)


def test_the_toy_model_follows_its_closed_form():
    # L = ½ mean (σᵢ − σᵢ*)² is N²/d times the loss for which σ' = σ^{2−2/N} (σ* − σ)
    target, start, depth = np.array([3.0, 2.0]), 1e-2, 3
    model = models.Diagonal.constant(2, start ** (1 / depth), depth, signed=False)
    traj = gflow.integrate(
        model, (np.eye(2), target), 0.9, rtol=1e-9, atol=1e-13, observe={"s": lambda m, _: m.effective()}
    )
    for i in range(2):
        sigma = traj["s"][1:, i]
        inside = (sigma > 2 * start) & (sigma < 0.99 * target[i])
        assert inside.sum() > 5
        times = deep_scalar_time(depth, sigma[inside], start, target[i]) * 2 / depth**2
        np.testing.assert_allclose(traj.t[1:][inside], times, rtol=1e-6)


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="depth must be"):
        models.Diagonal.constant(3, 0.1, 0)
    for make in (
        lambda scale: models.Diagonal.constant(3, scale),
        lambda scale: models.UnsharedDiagonal.constant(3, (0.1, scale)),
        lambda scale: models.Neuron.normal(3, scale, key=KEY),
        lambda scale: models.Neuron.balanced(3, scale, key=KEY),
        lambda scale: models.DeepLinear.identity(3, 2, scale),
        lambda scale: models.DeepLinear.normal((3, 1), scale, key=KEY),
        lambda scale: models.Convolutional.normal(3, 2, scale, key=KEY),
        lambda scale: models.Factorisation.identity(3, 2, scale),
        lambda scale: models.Factorisation.normal(3, 2, scale, key=KEY),
        lambda scale: models.SymmetricFactorisation.identity(3, scale),
        lambda scale: models.SymmetricFactorisation.normal(3, scale, key=KEY),
        lambda scale: models.Quadratic.orthogonal(3, scale, key=KEY),
        lambda scale: models.TwoLayer.balanced(3, 2, scale, key=KEY),
    ):
        for scale in (0.0, -0.1, np.inf, np.nan):
            with pytest.raises(ValueError, match="must be a positive finite scale"):
                make(scale)
    for make in (
        lambda depth: models.DeepLinear.identity(3, depth, 0.1),
        lambda depth: models.Factorisation.normal(3, depth, 0.1, key=KEY),
        lambda depth: models.Convolutional.normal(3, depth, 0.1, key=KEY),
    ):
        with pytest.raises(ValueError, match="depth must be"):
            make(0)
    for sizes in ((3,), (3, 0)):
        with pytest.raises(ValueError, match="sizes must"):
            models.DeepLinear.normal(sizes, 0.1, key=KEY)
    with pytest.raises(ValueError, match="slope must be"):
        models.TwoLayer(jnp.ones((2, 2)), jnp.ones(2), -0.1)


@pytest.mark.parametrize(
    "x",
    [np.ones(2), np.ones((2, 2)), np.ones((3, 3), int), np.ones(3, int)],
    ids=["floats", "small", "int", "three"],
)
def test_measurements_of_the_wrong_kind(x, unchecked):
    with pytest.raises(
        ValueError, match="x must hold matrices of floats of shape .3, 3., or pairs of integers"
    ):
        models.Factorisation.identity(3, 2, 1.0)(jnp.asarray(x))


def test_an_entry_that_is_not_there_is_no_entry():
    model = models.Factorisation.identity(3, 2, 0.1)
    assert all(np.isnan(model(jnp.array(entry))) for entry in ([0, 3], [5, 0], [0, -1]))
    indices, values = np.array([[0, 1], [3, 0]]), np.ones(2)
    with pytest.raises(ValueError, match="NaN|finite"):
        gflow.integrate(model, (indices, values), 1.0)
