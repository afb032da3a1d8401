"""Clocks: against closed forms, mpmath, cvxpy and scipy."""

from typing import ClassVar

import cvxpy as cp
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import minimize_scalar
from systems import Factors, Linear, tanh_network

import gflow
from gflow._stepper import Run
from gflow._watch import Watch
from gflow.clocks import Arclength, LogLoss, LogNorm, Time, TwoPhase
from gflow.clocks._log_time import course, log_elapsed
from gflow.flows import AbstractFlow
from gflow.losses import CrossEntropy, Exponential, Log, Logistic, Squared
from gflow.observe import Conserved
from gflow.stop import Crosses, LossBelow

ONE = (np.ones((1, 1)), np.ones(1))
at_zero = lambda size: Linear(jnp.zeros(size))


STEPS = [
    (1.0, 0.0, 0.0, 0.0, 0.0),
    (2.0, 0.0, 1.0, 2.3, 1.4),
    (3.0, 5.0, -1.0, 1.0, -2.5),
    (1.0, 0.0, 5.0, 0.0, -5.0),
    (1e4, 1e4, 1.0, 2e4, 1.01),
    (1e5, 10.0, 12.7, 1.27e6, 12.7),
]


@pytest.mark.slow
def test_time_of_a_step():
    h, r0, slope0, r1, slope1 = np.array(STEPS).T
    whole = lambda h, *ends: log_elapsed(course(h, None, *ends), jnp.ones(()))
    ours = jax.vmap(whole)(h, (r0, slope0), (r1, slope1))
    with mpmath.workdps(40):
        for value, (h, r0, slope0, r1, slope1) in zip(ours, STEPS, strict=True):

            def rate(x, r0=r0, r1=r1, d0=h * slope0, d1=h * slope1):
                hermite = r0 * (2 * x**3 - 3 * x**2 + 1) + r1 * (3 * x**2 - 2 * x**3)
                hermite += d0 * (x**3 - 2 * x**2 + x) + d1 * (x**3 - x**2)
                return mpmath.exp(hermite - max(r0, r1))

            steep = max(abs(r1 - r0), h * abs(slope0), h * abs(slope1), 1)
            near = [mpmath.mpf(2) ** k / steep for k in range(-3, 30) if 2**k < steep]
            cuts = sorted({mpmath.mpf(0), *near, *(1 - y for y in near), mpmath.mpf(1)})
            exact = max(r0, r1) + mpmath.log(h * mpmath.quad(rate, cuts))
            assert abs(float(float(value) - exact)) < 1e-8


@pytest.mark.slow
def test_log_t_of_one_logistic_example():
    taus = np.concatenate([[0.0], np.geomspace(0.01, 1e5, 36)])
    kwargs = dict(loss=Logistic(), clock=LogLoss(), save_at=taus, save_models=True)
    traj = gflow.integrate(at_zero(1), ONE, 1e5, **kwargs)
    exact = lambda w: float(mpmath.log(w + mpmath.expm1(w)))
    ws = [mpmath.mpf(float(w)) for w in np.asarray(traj.models.w)[1:, 0]]
    assert np.max(np.abs(traj.log_t[1:] - [exact(w) for w in ws])) < 1e-6
    assert np.array_equal(traj.s, taus) and traj.log_t[0] == -np.inf and traj.t[-1] == np.inf
    assert traj.loss[-1] == 0 and traj["log_loss"][-1] == pytest.approx(-float(ws[-1]))
    # and with w itself: τ = ∫ L (1 + eᵘ) du
    fine = gflow.integrate(at_zero(1), ONE, 1e5, **kwargs, rtol=1e-8, atol=1e-11)
    speed = lambda u: mpmath.log1p(mpmath.exp(-u)) * (1 + mpmath.exp(u))
    for tau, w, log_t in zip(taus[1::5], np.asarray(fine.models.w)[1::5, 0], fine.log_t[1::5], strict=True):
        w = mpmath.mpf(float(w))
        cuts = [c for c in (0, 1, 5, 20, 60) if c < w]
        assert abs(float(mpmath.quad(speed, [*cuts, w]) - tau)) < 1e-6
        assert abs(log_t - exact(w)) < 1e-6


@pytest.mark.slow
def test_log_t_beside_many_parameters_that_rest():
    # the error of log t is not lost in the mean over parameters
    x = np.zeros((1, 1000))
    x[0, 0] = 1
    kwargs = dict(loss=Logistic(), clock=LogLoss(), save_at=np.geomspace(0.1, 20, 12), save_models=True)
    traj = gflow.integrate(at_zero(1000), (x, np.ones(1)), 20.0, **kwargs, solver=diffrax.Tsit5())
    w = np.asarray(traj.models.w)[:, 0]
    assert np.max(np.abs(traj.log_t - np.log(w + np.expm1(w)))) < 2e-6


def separable(seed):
    """Thirty points with the labels of a linear teacher, none close to its plane."""
    random = np.random.default_rng(seed)
    x, teacher = random.normal(size=(100, 2)), random.normal(size=2)
    x = x[np.abs(x @ teacher) > 0.5 * np.linalg.norm(teacher)][:30]
    return x, np.sign(x @ teacher)


def pair(loader, first, second):
    """Two classes of real data, standardised, with a column of ones."""
    x, y = map(np.asarray, loader())
    x = x.reshape(len(x), -1)[(y == first) | (y == second)].astype(float)
    y = y[(y == first) | (y == second)]
    spread = x.std(0)
    x = ((x - x.mean(0)) / np.where(spread > 0, spread, 1))[:, spread > 0]
    return np.c_[x, np.ones(len(x))], np.where(y == first, 1.0, -1.0)


def largest_margin(x, y):
    w = cp.Variable(x.shape[1])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(w) / 2), [cp.multiply(y, x @ w) >= 1])
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-14, tol_gap_rel=1e-14, tol_feas=1e-14)
    return unit(w.value)


unit = lambda v: v / np.linalg.norm(v)


def logistic_path(x, y, taus):
    """w(τ) of logistic regression, by scipy with the Jacobian written out."""
    z = x * y[:, None]

    def weights(w):
        m = z @ w
        logs = np.where(
            m > 30, -m - np.exp(-np.maximum(m, 30)) / 2, np.log(np.logaddexp(0, -np.minimum(m, 30)))
        )
        total = np.logaddexp.reduce(logs)
        return np.exp(-np.logaddexp(0, m) - total), 1 / (1 + np.exp(np.minimum(-m, 700)))

    def jacobian(_, w):
        p, s = weights(w)
        return -(z.T * (p * s)) @ z + np.outer(z.T @ p, p @ z)

    field = lambda _, w: z.T @ weights(w)[0]
    kwargs = dict(method="Radau", jac=jacobian, rtol=1e-11, atol=1e-13, t_eval=taus)
    return solve_ivp(field, (0, taus[-1]), np.zeros(x.shape[1]), **kwargs).y.T


# A hundredth of what diffrax.Tsit5 takes to the error 1e-5, 413 071, 430 189 and 1 369 411 gradients; on the
# digits it didn't arrive, so that there is nothing to compare with.
DATA = [
    pytest.param(lambda: separable(0), 4130, id="gauss"),
    pytest.param(lambda: pair(gflow.data.iris, 0, 1), 4301, id="iris"),
    pytest.param(lambda: pair(gflow.data.wine, 0, 1), 13694, id="wine"),
    pytest.param(lambda: pair(gflow.data.digits, 3, 8), np.inf, id="digits"),
]


@pytest.mark.slow
@pytest.mark.parametrize("data, most", DATA)
def test_logistic_regression_far_beyond_plain_time(data, most):
    x, y = data()
    taus = np.array([1.0, 10.0, 100.0, 1e3, 1e4, 5e4, 1e5])
    kwargs = dict(loss=Logistic(), clock=LogLoss(), save_at=taus, save_models=True)
    traj = gflow.integrate(at_zero(x.shape[1]), (x, y), 1e5, **kwargs)
    ws, exact = np.asarray(traj.models.w), logistic_path(x, y, taus)
    error = np.linalg.norm(ws - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.max(error) < 1e-5
    assert traj.stats["gradients"] + 2 * traj.stats["hvps"] < most
    assert traj.stats["seconds"] - traj.stats["compile_seconds"] < 10
    limit = largest_margin(x, y)
    apart = np.array([np.linalg.norm(unit(w) - limit) for w in ws])
    assert np.linalg.norm(unit(ws[-1] - ws[-2]) - limit) < 1e-8
    assert apart[-1] < 1e-3
    law = apart[-3:] * traj.log_t[-3:]  # the distance falls like 1/log t
    assert np.ptp(law) < 0.02 * law[-1]


@pytest.mark.slow
def test_the_path_is_that_of_balls():
    # w(t)/|w(t)| tracks the minimum of L in the ball of radius |w(t)| (Ji and Telgarsky)
    x, y = separable(0)
    kwargs = dict(loss=Logistic(), clock=LogLoss(), save_models=True, save_at=np.geomspace(0.1, 20, 6))
    traj = gflow.integrate(at_zero(2), (x, y), 20.0, **kwargs)
    assert traj.t[0] < 0.2 and traj.t[-1] > 1e4
    apart = []
    for w in np.asarray(traj.models.w):
        radius, angle = np.linalg.norm(w), np.arctan2(w[1], w[0])
        point = lambda a, radius=radius: radius * np.array([np.cos(a), np.sin(a)])
        loss = lambda a, point=point: np.logaddexp.reduce(np.log(np.logaddexp(0, -y * (x @ point(a)))))
        # the minimum lies on the circle, because the loss falls along every ray that separates the data
        best = minimize_scalar(
            loss, bounds=(angle - 0.3, angle + 0.3), method="bounded", options={"xatol": 1e-9}
        )
        apart.append(np.linalg.norm(unit(w) - point(best.x) / radius))
    assert np.max(apart) < 0.02 and apart[-1] < 1e-3


def network(std=0.3):
    """A linear network of two layers, homogeneous of degree 2, and data that it can separate."""
    random = np.random.default_rng(0)
    x, y = separable(0)
    matrices = [jnp.asarray(std * random.normal(size=(3, 2))), jnp.asarray(std * random.normal(size=(3,)))]
    return Factors(matrices), (x, y)


def margins_path(model, data, start, s):
    """(θ, log t, log L) in log-norm time by scipy, with r = t L carried along."""
    z = data[0] * data[1][:, None]
    shape = model.matrices[0].shape
    parts = lambda p: (p[: shape[0] * shape[1]].reshape(shape), p[shape[0] * shape[1] :])

    def gradient(p):
        a, b = parts(p)
        q = z @ (a.T @ b)
        total = np.logaddexp.reduce(-q)
        weights = np.exp(-q - total)
        g = z.T @ weights
        return np.concatenate([np.outer(b, g).ravel(), a @ g]), total - np.log(len(q))

    def field(_, state):
        p, r = state[:-1], state[-1]
        g, _ = gradient(p)
        speed = p @ p / (p @ g)
        return np.append(speed * g, speed * (1 - r * (g @ g)))

    p0, log_t0 = start
    r0 = np.exp(log_t0 + gradient(p0)[1])
    found = solve_ivp(field, (0, s[-1]), np.append(p0, r0), method="Radau", rtol=1e-10, atol=1e-12, t_eval=s)
    logs = np.array([gradient(p)[1] for p in found.y[:-1].T])
    return found.y[:-1].T, np.log(found.y[-1]) - logs, logs


def flat(model, i):
    return np.concatenate([np.ravel(leaf[i]) for leaf in model.matrices])


@pytest.mark.slow
def test_two_phases_and_log_norm_time(tmp_path):
    model, data = network()
    n = len(data[1])
    norm = lambda m, _: jnp.sqrt(sum(jnp.sum(w**2) for w in m.matrices))
    s = np.array([0, 0.5, 1, 2, 3, 5, 7])  # −log L = 2e6 in the end
    options = dict(
        loss=Exponential(),
        clock=TwoPhase(times=[0.5, 1.0, 1e6]),
        save_at=s,
        save_models=True,
        observe={"norm": norm, "growth": Conserved("growth", norm, 1e9)},
        checkpoint=tmp_path / "run",
    )
    traj = gflow.integrate(model, data, 7.0, **options)
    assert traj.ok and traj.switch == 3 and traj.s[3] == 0 and np.array_equal(traj.s[3:], s)
    assert traj.loss[3] == pytest.approx(0.3 / n, rel=1e-9)
    assert np.array_equal(traj.t[:3], [0, 0.5, 1.0]) and np.all(np.diff(traj.log_t) > 0)
    np.testing.assert_allclose(traj.s[:3], traj.t[:3] - traj.t[3], rtol=1e-12)
    np.testing.assert_allclose(np.log(traj["norm"][3:] / traj["norm"][3]), s, atol=1e-4)
    np.testing.assert_allclose(np.exp(traj["log_loss"][:4]), traj.loss[:4])
    # what an observable remembers of the start outlives the switch
    np.testing.assert_allclose(traj["growth"], np.abs(traj["norm"] - traj["norm"][0]), atol=1e-12)
    start = flat(traj.models, 3), traj.log_t[3]
    exact, log_t, log_loss = margins_path(model, data, start, s)
    for i in range(len(s)):
        assert np.linalg.norm(flat(traj.models, 3 + i) - exact[i]) < 1e-4 * np.linalg.norm(exact[i])
    np.testing.assert_allclose(traj.log_t[3:], log_t, rtol=1e-4)
    np.testing.assert_allclose(traj["log_loss"][3:], log_loss, rtol=1e-4)
    smoothed = -(traj["log_loss"] + np.log(n))[3:] / traj["norm"][3:] ** 2
    assert np.all(np.diff(smoothed) > -1e-9)
    # the same from the end of a run that was kept, and from a file
    kept = gflow.integrate(model, data, 7.0, **options)
    assert np.array_equal(kept.log_t, traj.log_t)
    traj.save(tmp_path / "trajectory")
    loaded = gflow.load(tmp_path / "trajectory", like=model)
    for name in ("t", "s", "log_t", "switch"):
        assert np.array_equal(getattr(loaded, name), getattr(traj, name))
    assert "log t" in repr(loaded)


@pytest.mark.slow
def test_more_parameters_than_a_dense_jacobian_allows():
    random = np.random.default_rng(0)
    x = random.normal(size=(30, 160))
    y = np.sign(x @ random.normal(size=160))
    z, s = y[:, None] * x, np.array([0.0, 2.0, 4.0])

    def field(_, p):  # of β = u² − v², in log-norm time
        u, v = p[:160], p[160:]
        q = z @ (u**2 - v**2)
        g = z.T @ np.exp(-q - np.logaddexp.reduce(-q))
        g = np.concatenate([2 * u * g, -2 * v * g])
        return p @ p / (p @ g) * g

    kwargs = dict(loss=Exponential(), clock=TwoPhase(), save_at=s, save_models=True)
    for rtol in (1e-4, 1e-6):
        model = gflow.models.Diagonal.constant(160, 0.1, 2)
        traj = gflow.integrate(model, (x, y), 4.0, rtol=rtol, atol=1e-3 * rtol, **kwargs)
        assert traj.stats["solver"].endswith("RKC2") and traj["log_loss"][-1] < -1e4
        found = np.concatenate([traj.models.u, traj.models.v], axis=1)[traj.switch :]
        exact = solve_ivp(field, (0, 4), found[0], method="LSODA", rtol=1e-9, atol=1e-12, t_eval=s).y.T
        assert np.max(np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)) < rtol


@pytest.mark.slow
def test_the_first_phase_may_end_a_run():
    model, data = network()
    kwargs = dict(loss=Exponential(), clock=TwoPhase(), throw=False)
    traj = gflow.integrate(model, data, 3.0, **kwargs, max_steps=3)
    assert traj.status == "max_steps" and traj.switch is None and np.array_equal(traj.s, traj.t)
    assert "did not fall" in traj.reason
    traj = gflow.integrate(model, data, 3.0, **kwargs, stop=Crosses("log_loss", -50.0))
    assert traj.status == "stopped" and traj["log_loss"][-1] == pytest.approx(-50, rel=1e-9)


def test_a_second_clock_that_cannot_begin_leaves_the_first_phase():
    # ‖w‖ shrinks at the switch
    model, kwargs = (
        Linear(jnp.full(1, -0.5)),
        dict(loss=Exponential(), clock=TwoPhase(loss_below=1.5), throw=False),
    )
    traj = gflow.integrate(model, ONE, 3.0, **kwargs)
    assert traj.status == "clock_failure" and "norm grows" in traj.reason and traj.switch is None
    assert traj.loss[-1] == pytest.approx(1.5, rel=1e-6)


@pytest.mark.slow
def test_stops_and_records_of_one_exponential_example():
    # L = e^(-w) and dw/dτ = 1, so that t = e^τ - 1
    kwargs = dict(loss=Exponential(), clock=LogLoss(), save_at=np.array([0.0, 2.0, 5.0]), rtol=1e-8)
    ends = {
        LossBelow(1e-3): np.log(1000),
        Crosses("log_loss", -30.0): 30.0,
        Crosses("log_t", 40.0): np.log1p(np.exp(40.0)),
    }
    for stop, tau in ends.items():
        traj = gflow.integrate(at_zero(1), ONE, np.inf, **kwargs, stop=stop)
        assert traj.status == "stopped" and "τ =" in traj.reason
        assert traj.s[-1] == pytest.approx(tau, rel=1e-8)
        np.testing.assert_allclose(traj.log_t[1:], np.log(np.expm1(traj.s[1:])), atol=1e-8)
        np.testing.assert_allclose(traj.t, np.expm1(traj.s), rtol=1e-7)
        np.testing.assert_allclose(traj.gradient_norm, np.exp(-traj.s), rtol=1e-7)


@pytest.mark.slow
def test_arclength():
    # L = w²/2 from 1: w = 1 - s and t = -log(1 - s)
    loss = lambda model, _: model["w"] ** 2 / 2
    kwargs = dict(loss=loss, clock=Arclength(), save_models=True)
    traj = gflow.integrate({"w": jnp.ones(())}, None, 0.99, **kwargs)
    np.testing.assert_allclose(traj.models["w"], 1 - traj.s, atol=1e-6)
    np.testing.assert_allclose(traj.t, -np.log1p(-traj.s), rtol=1e-5)
    assert "log_loss" not in traj.records
    over = gflow.integrate({"w": jnp.ones(())}, None, 2.0, **kwargs, throw=False, max_steps=5000)
    assert over.status == "clock_failure" and "came to rest" in over.reason
    assert over.s[-1] == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_arclength_of_a_classifier_outlives_its_loss():
    kwargs = dict(loss=Exponential(), clock=Arclength(), save_models=True, save_at=3)
    traj = gflow.integrate(at_zero(1), ONE, 2000.0, **kwargs)
    np.testing.assert_allclose(np.asarray(traj.models.w)[:, 0], traj.s, rtol=1e-9)
    np.testing.assert_allclose(traj.log_t[1:], traj.s[1:], rtol=1e-9)


@pytest.mark.slow
def test_margins_that_floats_do_not_tell_apart_end_with_a_status():
    # θ = eˢ, of which an ulp is 1 at s = 37, and which overflows at s = 709
    start, save_at = Linear(jnp.array([3.0])), [0.0, 10.0]
    kwargs = dict(loss=Exponential(), clock=LogNorm(), save_at=save_at, throw=False)
    traj = gflow.integrate(start, ONE, 800.0, **kwargs)
    assert traj.status == "clock_failure" and "resolve" in traj.reason
    assert 30 < np.log(traj.model.w[0]) < 37
    assert traj["log_loss"][1] == pytest.approx(-3 * np.exp(10), rel=1e-4)


@pytest.mark.slow
def test_clocks_show_the_same_path_and_time():
    model, data = network()
    kwargs = dict(loss=Exponential(), rtol=1e-8, atol=1e-11, save_at=[2.0], save_models=True)
    slow = gflow.integrate(model, data, 2.0, **kwargs, clock=Arclength())
    when = float(slow.t[-1])
    for clock, s in ((Time(), when), (LogLoss(), None)):
        if s is None:  # τ = ∫ L dt is not known
            kwargs |= dict(save_at=[1e3], stop=Crosses("log_t", np.log(when)))
            traj = gflow.integrate(model, data, 1e3, **kwargs, clock=clock)
        else:
            kwargs["save_at"] = [s]
            traj = gflow.integrate(model, data, s, **kwargs, clock=clock)
        assert traj.t[-1] == pytest.approx(when, rel=1e-6)
        np.testing.assert_allclose(flat(traj.models, 0), flat(slow.models, 0), rtol=1e-6)


@pytest.mark.slow
def test_what_is_recorded_does_not_change_the_path():
    x, y = separable(1)
    kwargs = dict(loss=Logistic(), clock=LogLoss())
    few, many = (gflow.integrate(at_zero(2), (x, y), 50.0, **kwargs, save_at=count) for count in (2, 33))
    assert np.array_equal(few.model.w, many.model.w) and few.log_t[-1] == many.log_t[-1]
    assert few.stats["gradients"] - few.stats["record_gradients"] == (
        many.stats["gradients"] - many.stats["record_gradients"]
    )
    assert many.stats["compile_seconds"] < 0.5


@pytest.mark.slow
def test_members_have_times_of_their_own():
    x, y = separable(2)
    starts = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
    kwargs = dict(loss=Logistic(), clock=LogLoss(), save_at=5)
    together = gflow.integrate(Linear(starts), (x, y), 100.0, **kwargs, ensemble=True)
    assert together.t.shape == together.log_t.shape == (3, 5) and together.s.shape == (5,)
    for i in range(3):
        alone = gflow.integrate(Linear(starts[i]), (x, y), 100.0, **kwargs)
        np.testing.assert_allclose(together.log_t[i], alone.log_t, rtol=1e-10)
        np.testing.assert_allclose(together["log_loss"][i], alone["log_loss"], rtol=1e-10)
        assert together.end["log_t"][i] == together.log_t[i, -1] and together.end["s"][i] == 100.0


@pytest.mark.slow
def test_several_classes():
    x, y = gflow.data.iris()
    x = np.c_[(x - x.mean(0)) / x.std(0), np.ones(len(x))][y != 2]
    model = eqx.nn.Linear(5, 2, use_bias=False, key=jax.random.key(0))
    kwargs = dict(loss=CrossEntropy(), clock=LogLoss(), save_at=[9e3, 1e4], save_models=True)
    traj = gflow.integrate(model, (x, y[y != 2]), 1e4, **kwargs)
    first, second = np.asarray(traj.models.weight)
    step = (second - first)[0] - (second - first)[1]
    signs = np.where(y[y != 2] == 0, 1.0, -1.0)
    assert np.linalg.norm(unit(step) - largest_margin(x, signs)) < 1e-8


@pytest.mark.slow
def test_data_that_no_plane_separates():
    x = np.array([[1.0, 0.0], [-1.0, 0.5], [1.0, 1.0], [-1.0, -1.0], [0.3, -1.0]])
    y = np.array([1.0, 1.0, -1.0, -1.0, 1.0])
    with pytest.warns(UserWarning, match="does not tend to 0"):
        traj = gflow.integrate(at_zero(2), (x, y), 1e3, loss=Logistic(), clock=LogLoss())
    assert traj.ok and "separable" in traj.warnings[0]


@pytest.mark.slow
def test_steps_that_leave_the_path():
    x, y = separable(0)
    fixed = dict(
        solver=diffrax.Euler(), controller=diffrax.ConstantStepSize(), throw=False, loss=Exponential()
    )
    traj = gflow.integrate(at_zero(2), (x, y), 1e4, **fixed, clock=LogLoss(), dt0=20.0, save_at=2)
    assert traj.status == "clock_failure" and "raise the loss" in traj.reason
    assert traj["log_loss"][-1] <= traj["log_loss"][0]  # the last good state is kept


@pytest.mark.slow
def test_a_norm_that_stops_growing():
    # inseparable: w grows at first and then comes to rest, where ⟨w, −∇L⟩ = 0
    x = np.array([[1.0], [1.0], [-1.0]])
    y = np.array([1.0, 1.0, 1.0])
    start = Linear(jnp.array([0.05]))
    traj = gflow.integrate(start, (x, y), 10.0, loss=Logistic(), clock=LogNorm(), throw=False)
    assert traj.status == "clock_failure" and "stopped growing" in traj.reason
    assert abs(float(traj.model.w[0]) - np.log(2)) < 1e-2


@pytest.mark.slow
def test_a_network_with_kinks_ends_with_a_status():
    random = np.random.default_rng(0)
    angles = 2 * np.pi * (np.arange(8) + 0.5) / 8
    x = np.c_[np.cos(angles), np.sin(angles)]

    class Relu(eqx.Module):
        a: jax.Array
        b: jax.Array

        def __call__(self, x):
            return self.b @ jax.nn.relu(self.a @ x)

    a = random.normal(size=(12, 2)) / 2
    model = Relu(jnp.asarray(a), jnp.asarray(np.sign(random.normal(size=12)) * np.linalg.norm(a, axis=1)))
    kwargs = dict(loss=Exponential(), clock=TwoPhase(first=Arclength()), throw=False)
    norm = lambda m, _: jnp.sqrt(jnp.sum(m.a**2) + jnp.sum(m.b**2))
    traj = gflow.integrate(model, (x, np.sign(x[:, 0] * x[:, 1])), 1.5, **kwargs, observe={"norm": norm})
    assert traj.ok and traj["log_loss"][-1] < -20
    smoothed = -(traj["log_loss"] + np.log(8))[traj.switch :] / traj["norm"][traj.switch :] ** 2
    assert np.all(np.diff(smoothed) > -1e-5 * smoothed[-1])
    short = gflow.integrate(model, (x, np.sign(x[:, 0] * x[:, 1])), 1.5, **kwargs, max_steps=40)
    assert short.status == "max_steps" and "kinks" in short.reason


class Clockwork(AbstractFlow):
    """A flow that reads the time."""

    def vector_field(self, problem, t, params):
        return jax.tree.map(lambda g: -jnp.cos(t) * g, problem.gradient(params))


class Doubled(AbstractFlow):
    """Twice gradient flow, of which nothing is known."""

    def vector_field(self, problem, t, params):
        return jax.tree.map(lambda g: -2 * g, problem.gradient(params))


class Halved(AbstractFlow):
    """Half of gradient flow, which descends."""

    descends: ClassVar[bool] = True

    def vector_field(self, problem, t, params):
        return jax.tree.map(lambda g: -g / 2, problem.gradient(params))


@pytest.mark.slow
def test_other_flows():
    # dw/dτ = c and L = e^(-w), so that w = cτ and t = (e^(cτ) - 1)/c
    for flow, c in ((Doubled(), 2.0), (Halved(), 0.5)):
        kwargs = dict(loss=Exponential(), clock=LogLoss(), flow=flow, save_at=3)
        traj = gflow.integrate(at_zero(1), ONE, 10.0, **kwargs)
        np.testing.assert_allclose(traj["log_loss"], -c * traj.s, rtol=1e-6)
        np.testing.assert_allclose(traj.t, np.expm1(c * traj.s) / c, rtol=1e-5)


@pytest.mark.slow
def test_weight_decay():
    # its field over L has no symmetric Jacobian
    x, decay = np.array([[1.0, 0.0], [1.0, 2.0]]), 0.05

    def rate(_, w):
        losses = np.exp(-x @ w)
        return losses @ x / losses.sum() - decay * w / losses.mean()

    exact = solve_ivp(rate, (0, 4), [0.0, 0.5], method="Radau", rtol=1e-11, atol=1e-13).y[:, -1]
    flow = gflow.flows.WeightDecay(decay)
    kwargs = dict(loss=Exponential(), clock=LogLoss(), flow=flow, save_at=[4.0])
    traj = gflow.integrate(Linear(jnp.array([0.0, 0.5])), (x, np.ones(2)), 4.0, **kwargs)
    np.testing.assert_allclose(traj.model.w, exact, rtol=1e-4)


SIGNS = (np.ones((3, 2)), np.ones(3))
REFUSED = [
    (dict(clock=LogLoss(), loss=Squared()), "Squared"),
    (dict(clock=TwoPhase(), loss=Squared()), "Squared"),
    (dict(clock=LogLoss(), loss=Log(Logistic())), r"pass loss=Logistic\(\)"),
    (dict(clock=LogLoss(), loss=lambda model, data: 0.0 * jnp.sum(model.w)), "logarithm is known"),
    (dict(clock=LogLoss(), chunk_size=1), "chunk_size"),
    (dict(clock=LogNorm()), "norm grows"),
    (dict(clock=LogLoss(), rtol=1e-3), "at most 0.0001"),
    (dict(clock=TwoPhase(), rtol=1e-3), "at most 0.0001"),
    (dict(clock=LogLoss(), flow=Clockwork()), "depend on time"),
    (dict(clock=TwoPhase(loss_below=-1.0)), "loss_below"),
    (dict(clock=LogLoss(), rtol=1e-14), r"at least 4.4e-14 in float64 with clock=LogLoss\(\)"),
    (dict(clock=LogLoss(), observe={"log_t": lambda m, d: 0.0}), "records anyway"),
    (dict(clock=Time(), stop=Crosses("log_t", 3.0)), "not recorded"),
]


@pytest.mark.parametrize("kwargs, message", REFUSED)
def test_what_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        gflow.integrate(at_zero(2), SIGNS, 1.0, **{"loss": Logistic(), **kwargs})


def test_log_t_alone_costs_no_gradient():
    names = ("loss", "gradient_norm", "log_loss", "log_t")
    watch = lambda *stops: Watch(stops, (), np.dtype(float), names)
    assert watch(Crosses("log_t", 3.0)).gradients() == 0
    assert watch(Crosses("log_t", 3.0), Crosses("log_loss", -3.0)).gradients() == 1


def test_more_that_is_refused():
    for times in ([-1.0], [np.nan], np.ones((1, 1))):
        with pytest.raises(ValueError, match="times must be readings of the first clock"):
            TwoPhase(times=times)
    model, data = tanh_network(sizes=(3, 4, 1))
    at_rest = lambda m, d: 0.0 * jnp.sum(m.layers[0].weight)
    with pytest.raises(ValueError, match="moves where it starts"):
        gflow.integrate(model, data, 1.0, loss=at_rest, clock=Arclength())
    with pytest.raises(ValueError, match="ensemble"):
        gflow.integrate(
            Linear(jnp.zeros((2, 2))), SIGNS, 1.0, loss=Logistic(), clock=TwoPhase(), ensemble=True
        )


class Wavy(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return jnp.dot(self.w, x) + jnp.sin(jnp.dot(self.w, x)) / 2


@pytest.mark.slow
def test_a_linearised_flow_stays_linearised_where_it_began():
    data, model, options = (
        separable(0),
        Wavy(jnp.array([0.3, -0.2])),
        {"loss": Logistic(), "save_at": [0.0, 5.0]},
    )
    clock = TwoPhase(Time(), LogLoss(), loss_below=0.3)
    flow = gflow.integrate(model, data, 5.0, flow=gflow.flows.LinearisedFlow(), clock=clock, **options)
    linear = gflow.models.Linearised(model)
    options = {"loss": Logistic(), "trainable": linear.trainable, "save_at": 2}
    exact = gflow.integrate(linear, data, flow.t[-1], **options)
    np.testing.assert_allclose(flow.model.w - model.w, exact.model.displacement.w, rtol=1e-3)


def test_an_interrupt_where_the_clock_changes_leaves_the_first_phase(monkeypatch):
    begin = Run._drive

    def interrupted(self):
        if self.symbol != "t":
            raise KeyboardInterrupt
        yield from begin(self)

    monkeypatch.setattr(Run, "_drive", interrupted)
    clock = TwoPhase(Time(), LogLoss(), loss_below=0.3)
    traj = gflow.integrate(at_zero(2), separable(0), 20.0, loss=Logistic(), clock=clock)
    assert traj.status == "interrupted" and traj.loss[-1] == pytest.approx(0.3, rel=1e-6)
