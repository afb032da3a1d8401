"""Logarithms of losses: against mpmath, and what flow and descent on them reach."""

import cvxpy as cp
import diffrax
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from systems import Linear

import gflow
from gflow.losses import CrossEntropy, Exponential, Log, Logistic, Squared

LOSSES = [Logistic(), Exponential(), CrossEntropy()]


def log_loss(loss, outputs, targets):
    """log (1/n) Σ ℓ in 500 digits."""
    with mpmath.workdps(500):

        def one(f, y):
            if isinstance(loss, CrossEntropy):
                return mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(float(v - f[y]))) for v in f))
            e = mpmath.exp(-mpmath.mpf(float(y * f)))
            return mpmath.log(1 + e) if isinstance(loss, Logistic) else e

        total = mpmath.fsum(one(f, y) for f, y in zip(outputs, targets, strict=True))
        return float(mpmath.log(total / len(targets)))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("scale", [0.1, 10.0, 60.0, 1000.0])
def test_log_losses_and_their_gradients(loss, scale):
    random = np.random.default_rng(0)
    outputs = scale * (1 + random.random(5))
    targets = np.ones(5)
    if isinstance(loss, CrossEntropy):
        outputs = np.stack([outputs, 0 * outputs, -outputs], axis=1)
        targets = np.zeros(5, dtype=int)
    of = lambda f: Log(loss)(lambda x: x, (f, targets))
    value, gradient = jax.jit(jax.value_and_grad(of))(outputs)
    np.testing.assert_allclose(value, log_loss(loss, outputs, targets), rtol=1e-13)
    change = np.zeros_like(outputs)
    change.flat[0] = scale * 2.0**-20
    slope = (log_loss(loss, outputs + change, targets) - log_loss(loss, outputs - change, targets)) / (
        2 * change.flat[0]
    )
    np.testing.assert_allclose(np.ravel(gradient)[0], slope, rtol=1e-6, atol=1e-9)


def test_log_losses_in_float32_where_the_loss_underflows():
    f = jnp.array([120.0, 130.0], jnp.float32)
    for loss in (Logistic(), Exponential()):
        value, gradient = jax.value_and_grad(lambda f, loss=loss: Log(loss)(lambda x: x, (f, jnp.ones(2))))(f)
        assert float(value) == pytest.approx(-120 + np.log((1 + np.exp(-10)) / 2), rel=1e-6)
        np.testing.assert_allclose(gradient, [-1 / (1 + np.exp(-10)), -np.exp(-10)], rtol=1e-4)


def test_a_log_loss_checks_labels_and_refuses_other_losses():
    x, y = np.ones((3, 2)), np.array([0, 1, 1])
    with pytest.raises(ValueError, match=r"\+1 and -1"):
        gflow.Problem(Linear(jnp.ones(2)), (x, y), Log(Logistic()))
    with pytest.raises(ValueError, match="Squared"):
        Log(Squared())
    with pytest.raises(ValueError, match="mean over examples"):
        gflow.Problem(Linear(jnp.ones(2)), (x, 2 * y - 1), Log(Logistic()), chunk_size=1)


def separable(seed):
    """Thirty points with the labels of a linear teacher, none close to its plane."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(100, 2))
    teacher = random.normal(size=2)
    x = x[np.abs(x @ teacher) > 0.5 * np.linalg.norm(teacher)][:30]
    return x, np.sign(x @ teacher)


@pytest.mark.parametrize(
    "seed, solver",
    [
        (0, None),
        *(
            pytest.param(*of, marks=pytest.mark.slow)
            for of in ((0, diffrax.Kvaerno5()), (1, None), (2, None))
        ),
    ],
)
def test_the_flow_of_the_log_loss_reaches_the_largest_margin(seed, solver):
    x, y = separable(seed)
    w = cp.Variable(2)
    cp.Problem(cp.Minimize(cp.sum_squares(w) / 2), [cp.multiply(y, x @ w) >= 1]).solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-14, tol_gap_rel=1e-14, tol_feas=1e-14
    )
    traj = gflow.integrate(
        Linear(jnp.zeros(2)),
        (x, y),
        1e5,
        loss=Log(Logistic()),
        solver=solver,
        rtol=1e-8,
        atol=1e-11,
        save_at=np.array([0.0, 5e4, 1e5]),
        save_models=True,
    )
    assert traj.ok and traj.loss[-1] < -1e4  # the loss itself is far below the smallest float
    if solver is None:  # explicit solvers need 400 thousand and more
        assert traj.stats["gradients"] + 2 * traj.stats["hvps"] < 4000
    ws = np.asarray(traj.models.w)
    direction = lambda v: v / np.linalg.norm(v)
    assert np.linalg.norm(direction(ws[-1]) - direction(w.value)) < 1e-3
    assert np.linalg.norm(direction(ws[-1] - ws[-2]) - direction(w.value)) < 1e-8


def test_time_of_the_flow_of_the_log_loss():
    # one example: t = w + e^w − 1 and dτ = L dt, so that τ = ∫ L (1 + e^w) dw
    times = np.linspace(0, 30, 7)
    traj = gflow.integrate(
        Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1)), 30.0, loss=Log(Logistic()), save_at=times,
        save_models=True, rtol=1e-9, atol=1e-12,
    )  # fmt: skip
    for tau, w in zip(times[1:], np.asarray(traj.models.w)[1:, 0], strict=True):
        integrand = lambda u: mpmath.log(1 + mpmath.exp(-u)) * (1 + mpmath.exp(u))
        assert float(mpmath.quad(integrand, [0, w / 2, w])) == pytest.approx(tau, rel=1e-8)
