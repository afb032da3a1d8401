"""Flows that are not plain gradient flow, against projections and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from systems import Factors, Linear, sum_of_squares

import gflow


def negative_entropy(params):
    return jnp.sum(params.w * jnp.log(params.w) - params.w)


def kl_projection(x, y, start):
    """argmin KL(w, start) subject to xw = y: w = start exp(xᵀν), by damped Newton on the convex dual."""
    dual = lambda nu: np.sum(start * np.exp(x.T @ nu)) - y @ nu
    nu = np.zeros(len(y))
    for _ in range(100):
        w = start * np.exp(x.T @ nu)
        residual = x @ w - y
        step = np.linalg.solve((x * w) @ x.T, residual)
        damping = 1.0
        while dual(nu - damping * step) > dual(nu) + 1e-14 and damping > 1e-12:
            damping /= 2
        nu = nu - damping * step
    w = start * np.exp(x.T @ nu)
    assert np.abs(x @ w - y).max() < 1e-12
    return w


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mirror_flow_projects_in_the_divergence_of_its_potential(seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=(3, 8))
    y, start = x @ random.uniform(0.1, 1.0, 8), np.full(8, 0.3)
    traj = gflow.integrate(
        Linear(jnp.asarray(start)),
        (x, y),
        500.0,
        loss=sum_of_squares,
        flow=gflow.flows.MirrorFlow(negative_entropy),
        rtol=1e-11,
        atol=1e-15,
        save_at=2,
    )
    np.testing.assert_allclose(traj.model.w, kl_projection(x, y, start), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weight_decay_of_a_product_shrinks_singular_values(seed):
    # stationary points of ½‖AB − M‖² + (λ/2)(‖A‖² + ‖B‖²) of full rank: AB = U (S − λ) Vᵀ
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.normal(size=(3, 3)))[0] for _ in range(2))
    values, decay = np.array([3.0, 2.0, 0.2]), 0.5
    target = (left * values) @ right.T
    traj = gflow.integrate(
        Factors([jnp.asarray(random.normal(size=(3, 3))) for _ in range(2)]),
        (np.eye(3), target.T),
        150.0,
        loss=sum_of_squares,
        flow=gflow.flows.WeightDecay(decay),
        rtol=1e-10,
        atol=1e-13,
        save_at=2,
    )
    b, a = (np.asarray(m) for m in traj.model.matrices)
    shrunk = np.maximum(values - decay, 0)
    np.testing.assert_allclose(a @ b, (left * shrunk) @ right.T, rtol=0, atol=1e-9)
    np.testing.assert_allclose((np.sum(a**2) + np.sum(b**2)) / 2, shrunk.sum(), rtol=1e-9)


@pytest.mark.parametrize("strength", [-1.0, np.inf, np.nan])
def test_a_strength_that_makes_no_sense_is_refused(strength):
    with pytest.raises(ValueError, match="strength must be"):
        gflow.flows.WeightDecay(strength)


@pytest.mark.slow
def test_the_mirror_flow_of_the_hypentropy_is_the_path_of_a_diagonal_network():
    # w = u² − v² from u = v = α runs along the mirror flow, four times as fast
    random, alpha = np.random.default_rng(0), 0.2
    data = random.normal(size=(3, 6)), random.normal(size=3)
    call = dict(loss=sum_of_squares, rtol=1e-9, atol=1e-12, save_at=11)
    network = gflow.models.Diagonal.constant(6, alpha)
    deep = gflow.integrate(network, data, 1.0, observe={"w": lambda m, _: m.effective()}, **call)
    potential = gflow.bias.Hypentropy(alpha)
    flow = gflow.flows.MirrorFlow(lambda params: potential(params.w))
    mirror = gflow.integrate(
        Linear(jnp.zeros(6)), data, 4.0, flow=flow, observe={"w": lambda m, _: m.w}, **call
    )
    np.testing.assert_allclose(mirror["w"], deep["w"], rtol=0, atol=1e-7)
    assert np.abs(deep["w"][-1]).max() > 0.1


def test_a_potential_that_is_not_convex_ends_in_a_status():
    flow = gflow.flows.MirrorFlow(lambda params: -jnp.sum(params.w**2))
    data = np.eye(2), np.ones(2)
    traj = gflow.integrate(Linear(jnp.zeros(2)), data, 1.0, flow=flow, throw=False)
    assert traj.status == "nonfinite"


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_linearised_flow_has_the_closed_form_of_its_kernel(chunk_size):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 3)), random.normal(size=5)
    w, v = random.normal(size=(20, 3)), random.normal(size=20) / 4
    traj = gflow.integrate(
        gflow.models.TwoLayer(jnp.asarray(w), jnp.asarray(v), 0.2),
        (x, y),
        4.0,
        flow=gflow.flows.LinearisedFlow(),
        chunk_size=chunk_size,
        rtol=1e-10,
        atol=1e-12,
        save_at=3,
        save_models=True,
    )
    # of Σⱼ vⱼ φ(wⱼ·x): the derivatives in w and v, written out
    z = x @ w.T
    slope = np.where(z > 0, 1, 0.2)
    jacobian = np.concatenate([((v * slope)[:, :, None] * x[:, None]).reshape(5, -1), z * slope], axis=1)
    values, vectors = np.linalg.eigh(jacobian @ jacobian.T / 5)  # of the mean over five examples
    for i, t in enumerate(traj.t):
        weights = vectors @ ((1 - np.exp(-values * t)) / values * (vectors.T @ (y - z * slope @ v))) / 5
        moved = np.concatenate([(traj.models.w[i] - w).ravel(), traj.models.v[i] - v])
        np.testing.assert_allclose(moved, jacobian.T @ weights, rtol=0, atol=1e-8)
