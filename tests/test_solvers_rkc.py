"""RKC2 and RKC3 against closed forms, an independent stability polynomial, and scipy."""

import itertools

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from scipy.integrate import solve_ivp

from gflow import solvers
from gflow.solvers import _bend, _chebyshev

SOLVERS = [solvers.RKC2(), solvers.RKC3()]
name_of = lambda solver: type(solver).__name__
# RKC2 is the program of RKC3 but for its memory.
EACH = pytest.mark.parametrize(
    "solver", [pytest.param(SOLVERS[0], marks=pytest.mark.slow), SOLVERS[1]], ids=name_of
)


def solve(vf, y0, t1, solver, rtol=1e-6, *, atol=None, saveat=None, t0=0.0, args=None, **kwargs):
    controller = dfx.PIDController(rtol, rtol if atol is None else atol)
    saveat = dfx.SaveAt(t1=True) if saveat is None else saveat
    kwargs.setdefault("max_steps", 100_000)
    kwargs.setdefault("stepsize_controller", controller)
    kwargs.setdefault("dt0", None)
    dt0 = kwargs.pop("dt0")
    return dfx.diffeqsolve(dfx.ODETerm(vf), solver, t0, t1, dt0, y0, args=args, saveat=saveat, **kwargs)


def logistic(t, y, args):
    del t, args
    return y * (1 - y)


def logistic_exact(t, y0=0.1):
    return y0 * np.exp(t) / (1 + y0 * (np.exp(t) - 1))


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("stiff", [0.0, 300.0])
def test_order(solver, stiff):
    # A smooth mode and a stiff one that is slaved to it: order reduction would show.
    def vf(t, y, args):
        a, b = y
        da = a * (1 - a) + 0.2 * jnp.sin(3 * t) * a
        return da, -stiff * (b - jnp.cos(2 * a)) - 2 * jnp.sin(2 * a) * da

    a0 = jnp.asarray([0.1, 0.3])
    y0 = (a0, jnp.cos(2 * a0))
    reference = solve(vf, y0, 3.0, dfx.Dopri8(), 1e-13).ys
    errors = []
    steps = [160, 320, 640]
    for n in steps:
        sol = solve(vf, y0, 3.0, solver, dt0=3.0 / n, stepsize_controller=dfx.ConstantStepSize())
        errors.append(max(float(jnp.max(jnp.abs(x - r)))
                          for x, r in zip(sol.ys, reference, strict=True)))  # fmt: skip
    slopes = np.diff(np.log(errors)) / np.log(0.5)
    # The stiff case may do better than its order, never worse.
    assert slopes[-1] > solver.order(None) - 0.2, slopes
    assert stiff or slopes[-1] < solver.order(None) + 0.2, slopes


def stability_polynomial(s, z, eps=2 / 13):
    """a_s + b_s T_s(w0 + w1 z) with numpy's Chebyshev class, nothing of the code under test."""
    w0 = 1 + eps / s**2
    x = np.arccosh(w0)
    value = np.cosh(s * x)
    first = s * np.sinh(s * x) / np.sinh(x)
    second = (s**2 * value - w0 * first) / np.sinh(x) ** 2
    b = second / first**2
    argument = w0 + first / second * z
    inside = np.cos(s * np.arccos(np.clip(argument, -1, 1)))
    outside = np.cosh(s * np.arccosh(np.maximum(np.abs(argument), 1)))
    sign = np.where((argument < 0) & (s % 2 == 1), -1.0, 1.0)
    return 1 - b * value + b * np.where(np.abs(argument) <= 1, inside, sign * outside)


@pytest.mark.parametrize("s", range(2, 201))
def test_stability_interval(s):
    formula = 2 / 3 * (s**2 - 1) * (1 - 2 / 15 * 2 / 13)
    z = -np.linspace(0, 1.2, 20_001) * formula
    outside = np.abs(stability_polynomial(s, z)) > 1 + 1e-9
    measured = -z[np.argmax(outside)] if outside.any() else np.inf
    assert measured >= 0.95 * formula
    # The code never asks more of s stages than the formula, and the code's step is this polynomial.
    assert float(_chebyshev.stages_for(jnp.asarray(0.999 * formula))) <= s


@pytest.mark.parametrize("s", [2, 3, 7, 30, 120, 200])
def test_step_is_the_polynomial(s):
    formula = 2 / 3 * (s**2 - 1) * (1 - 2 / 15 * 2 / 13)
    lam = 0.9999 * formula / 1.2  # the bound carries a safety factor of 1.2
    term = dfx.ODETerm(lambda t, y, args: -lam * y * args)
    rates = jnp.linspace(0.01, 1.0, 50)
    solver = solvers.RKC2()
    y0 = jnp.ones(50)
    state = solver.init(term, 0.0, 1.0, y0, rates)
    # The exact radius, so that the number of stages is known.
    state = eqx.tree_at(lambda q: q.radius.value, state, jnp.asarray(lam))
    y1, _, _, state, _ = solver.step(term, 0.0, 1.0, y0, rates, state, False)
    assert int(state.stages) == s
    np.testing.assert_allclose(y1, stability_polynomial(s, np.asarray(-lam * rates)), rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_rkc3_recursion_is_stable():
    """Equal steps of RKC3 on y' = lambda y over the whole interval of each stage number."""
    solver = solvers.RKC3()
    for s in (2, 3, 5, 9, 24):
        formula = 2 / 3 * (s**2 - 1) * (1 - 2 / 15 * 2 / 13)
        rates = jnp.linspace(0.0, 1.0, 201) * formula / 1.2
        term = dfx.ODETerm(lambda t, y, args: -args * y)
        sol = dfx.diffeqsolve(term, solver, 0.0, 400.0, 1.0, jnp.ones(201), args=rates, max_steps=500)
        assert float(jnp.max(jnp.abs(sol.ys))) <= 1.001


@EACH
def test_stiff_linear(solver):
    lam = jnp.asarray([1e-3, 1.0, 1e3, 1e5, 1e8])

    def vf(t, y, args):
        return -lam * (y - jnp.cos(t)) - jnp.sin(t)

    sol = solve(vf, jnp.full(5, 2.0), 0.05, solver, 1e-4)
    exact = np.cos(0.05) + np.exp(-np.asarray(lam) * 0.05)
    np.testing.assert_allclose(sol.ys[0], exact, atol=1e-3)


def test_rkc3_has_order_three_with_steps_that_grow():
    """y' = -y² from 1 to 1/31: each step longer than the one before, in proportion to 1 + t."""
    solver, term = solvers.RKC3(), dfx.ODETerm(lambda t, y, args: -(y**2))
    step = jax.jit(lambda t, t_next, y, state: solver.step(term, t, t_next, y, None, state, False))
    errors = []
    for n in (20, 40, 80):
        ts, y = np.expm1(np.linspace(0, np.log(31), n + 1)), jnp.ones(1)
        state = solver.init(term, 0.0, ts[1], y, None)
        for t, t_next in itertools.pairwise(ts):
            y, _, _, state, _ = step(t, t_next, y, state)
        errors.append(abs(31 * float(y[0]) - 1))
    assert np.all(np.abs(np.log2(errors[:-1]) - np.log2(errors[1:]) - 3) < 0.4), errors
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("growth", [0.05, 0.2, 0.3])
def test_a_solution_linear_in_logarithmic_time_is_foretold_exactly(growth):
    step = 0.7
    steps = step / (1 + growth) ** np.arange(1, 4)
    ages = np.cumsum(steps)
    c = step / growth  # where steps that grow like this come from
    past = tuple(jnp.asarray([np.log(c - age)]) for age in ages)
    now = jnp.asarray([np.log(c)])
    bend = _bend.extrapolated(step, now, past, jnp.asarray(ages), jnp.log1p(growth), True)
    for share in (0.3, 1.0):
        exact = np.log(c + share * step) - np.log(c) - share * step / c
        np.testing.assert_allclose(bend.at(share, jnp.zeros(1)), exact, rtol=1e-10)
        slope = step / (c + share * step) - step / c
        np.testing.assert_allclose(-bend.rate(share, jnp.zeros(1)), slope, rtol=1e-10)


@pytest.mark.slow
@EACH
def test_dense_output_order(solver):
    errors = []
    for n in (10, 20, 40):
        # One step from the exact solution, so that only interpolation and local error count.
        h = 4.0 / n
        term = dfx.ODETerm(logistic)
        state = solver.init(term, 0.0, h, jnp.asarray(0.1), None)
        y1, _, info, _, _ = solver.step(term, 0.0, h, jnp.asarray(0.1), None, state, False)
        dense = solver.interpolation_cls(t0=0.0, t1=h, **info)
        ts = np.linspace(0, h, 21)
        # Remove the linear part of the step's own error.
        drift = (float(y1) - logistic_exact(h)) * 1.0
        values = np.asarray([float(dense.evaluate(t)) for t in ts])
        s = ts / h
        errors.append(np.max(np.abs(values - logistic_exact(ts) - drift * s**2 * (3 - 2 * s))))
    assert np.log2(errors[-2] / errors[-1]) > 2.8


@pytest.mark.slow
def test_pytree_saveat_event_vmap():
    solver = SOLVERS[1]

    def vf(t, y, args):
        return {"a": -y["a"] * args, "b": (-20.0 * y["b"][0],)}

    y0 = {"a": jnp.ones((2, 3)), "b": (jnp.ones(4),)}
    ts = jnp.linspace(0, 1, 7)
    sol = solve(vf, y0, 1.0, solver, 1e-7, args=2.0, saveat=dfx.SaveAt(ts=ts))
    np.testing.assert_allclose(sol.ys["a"][:, 1, 2], np.exp(-2 * ts), atol=1e-5)
    np.testing.assert_allclose(sol.ys["b"][0][:, 0], np.exp(-20 * ts), atol=1e-4)

    event = dfx.Event(
        lambda t, y, args, **kw: y["a"][0, 0] - 0.5,
        root_finder=optx.Newton(1e-8, 1e-8),
    )
    sol = solve(vf, y0, 1.0, solver, 1e-7, args=2.0, event=event)
    assert abs(float(sol.ts[0]) - np.log(2) / 2) < 1e-5

    run = jax.jit(jax.vmap(lambda k: solve(vf, y0, 1.0, solver, 1e-7, args=k).ys["a"][0, 0, 0]))
    np.testing.assert_allclose(run(jnp.asarray([1.0, 3.0])), np.exp([-1.0, -3.0]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint, transform",
    [(dfx.RecursiveCheckpointAdjoint(), jax.grad), (dfx.ForwardMode(), jax.jacfwd)],
    ids=["reverse", "forward"],
)
def test_derivatives(adjoint, transform):
    def final(k):
        # k is closed over on purpose.
        def vf(t, y, args):
            return -k * y * jnp.asarray([1.0, 40.0])

        sol = solve(vf, jnp.ones(2), 1.0, solvers.RKC3(), 1e-8, adjoint=adjoint, max_steps=4096)
        return sol.ys[0, 0]

    k = jnp.asarray([0.5, 1.5])
    np.testing.assert_allclose(jax.vmap(transform(final))(k), -np.exp(-k), rtol=1e-5)


@EACH
@pytest.mark.slow
def test_derivatives_backwards_in_time(solver):
    def final(k):
        vf = lambda t, y, k: -k * y * jnp.asarray([1.0, 10.0])
        sol = solve(vf, jnp.ones(2), 1.0, solver, 1e-7, args=k, adjoint=dfx.BacksolveAdjoint())
        return sol.ys[0, 0]

    assert float(jax.grad(final)(0.7)) == pytest.approx(-np.exp(-0.7), rel=1e-3)


@EACH
@pytest.mark.slow
def test_float32(solver):
    lam = jnp.logspace(-1, 3, 30, dtype=jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
        y = solve(
            lambda t, y, args: -lam * y, jnp.ones(30, jnp.float32), jnp.asarray(1, jnp.float32),
            solver, 1e-4, t0=jnp.asarray(0, jnp.float32),
        ).ys[0]  # fmt: skip
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, np.exp(-np.asarray(lam)), atol=1e-3)


@EACH
def test_non_autonomous_pure_quadrature(solver):
    # f does not depend on y: stage ratios say nothing about a spectrum, and must do no harm.
    sol = solve(lambda t, y, args: jnp.cos(5 * t) + 0 * y, jnp.zeros(3), 2.0, solver, 1e-6)
    np.testing.assert_allclose(sol.ys[0], np.sin(10) / 5, atol=3e-5)
    assert int(sol.stats["num_steps"]) < 3000


EVERY = [*SOLVERS, solvers.EXPRB42(), solvers.EXPRB43()]


@pytest.mark.parametrize("solver", EVERY, ids=[type(s).__name__ for s in EVERY])
@pytest.mark.slow
def test_backwards_in_time(solver):
    def vf(t, y, args):
        return -0.5 * y + jnp.cos(3 * t)

    sol = solve(vf, jnp.ones(2), 0.0, solver, t0=1.0, dt0=-0.02, stepsize_controller=dfx.ConstantStepSize())
    exact = lambda t: (0.5 * np.cos(3 * t) + 3 * np.sin(3 * t)) / 9.25
    np.testing.assert_allclose(sol.ys[0], exact(0.0) + np.exp(0.5) * (1 - exact(1.0)), rtol=1e-4)


@EACH
def test_complex_spectrum_is_caught(solver):
    """Eigenvalues on the imaginary axis: expensive, but right."""
    w = 40.0

    def vf(t, y, args):
        return jnp.stack([w * y[1], -w * y[0]])

    sol = solve(vf, jnp.asarray([1.0, 0.0]), 1.0, solver, 1e-6)
    np.testing.assert_allclose(sol.ys[0], [np.cos(w), -np.sin(w)], atol=3e-3)


@EACH
def test_nan_in_a_stage_rejects(solver):
    """sqrt of a negative argument once the step is too long."""

    def vf(t, y, args):
        return -jnp.sqrt(y)

    sol = solve(vf, jnp.asarray([1.0]), 1.8, solver, 1e-4, dt0=1.5)
    np.testing.assert_allclose(sol.ys[0], (1 - 0.9) ** 2, atol=1e-3)


@EACH
def test_nan_everywhere_is_no_success(solver):
    sol = solve(
        lambda t, y, args: y * jnp.nan, jnp.ones(2), 1.0, solver, dt0=0.1, max_steps=50,
        throw=False,
    )  # fmt: skip
    assert sol.result != dfx.RESULTS.successful


@pytest.mark.slow
@EACH
def test_gradients_are_counted(solver):
    calls = []

    def vf(t, y, args):
        jax.debug.callback(lambda: calls.append(1))
        return -jnp.asarray([1.0, 200.0]) * y

    term = dfx.ODETerm(vf)
    y = jnp.ones(2)
    state = solver.init(term, 0.0, 1.0, y, None)
    t = 0.0
    for h in (0.01, 0.1, 0.2, 0.3, 0.3, 0.4, 0.4, 0.3):
        y, _, _, state, _ = solver.step(term, t, t + h, y, None, state, False)
        t += h
    jax.effects_barrier()
    # Tracing the field as an operand does not run it.
    assert int(state.gradients) == len(calls)
    assert 0 < int(state.radius_gradients) < int(state.gradients)


@EACH
def test_sudden_stiffness(solver):
    """Stiffness appears a thousandfold in the middle: the alarm restarts the step."""

    def vf(t, y, args):
        lam = jnp.where(t < 1.0, 1.0, 1000.0)
        return -lam * (y - 1)

    sol = solve(vf, jnp.asarray([2.0, 1.5]), 2.0, solver, 1e-5)
    np.testing.assert_allclose(sol.ys[0], 1.0, atol=1e-4)
    assert int(sol.stats["num_steps"]) < 400


@EACH
def test_rejection_hook(solver):
    term = dfx.ODETerm(lambda t, y, args: -jnp.asarray([1.0, 50.0]) * y)
    y = jnp.ones(2)
    before = solver.init(term, 0.0, 1.0, y, None)
    _, _, _, attempted, _ = solver.step(term, 0.0, 0.5, y, None, before, False)
    kept = solver.rejected(before, attempted)
    assert int(kept.gradients) == int(attempted.gradients) > int(before.gradients)
    np.testing.assert_array_equal(kept.f0, before.f0)
    assert int(kept.known) == int(before.known)


def deep_linear(scale):
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    v = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    target = jnp.asarray(u @ np.diag([12, 6, 4] + [0] * 47) @ v.T)
    w = jnp.asarray(rng.normal(size=(3, 50, 50)) * scale)

    def loss(w):
        return 0.5 * jnp.sum((w[2] @ w[1] @ w[0] - target) ** 2)

    return loss, w


@pytest.mark.slow
@pytest.mark.parametrize("scale,horizon", [(0.05, 15.0), (0.02, 20.0), (0.01, 25.0)])
def test_out_of_a_saddle(scale, horizon):
    loss, w = deep_linear(scale)
    gradient = jax.jit(jax.grad(loss))
    reference = solve_ivp(
        lambda t, y: -np.asarray(gradient(y.reshape(3, 50, 50))).ravel(), (0, horizon),
        np.asarray(w).ravel(), method="DOP853", rtol=1e-9, atol=1e-11,
    ).y[:, -1]  # fmt: skip
    for solver in SOLVERS:

        @jax.jit
        def end(inner, atol, solver=solver):
            return solve(lambda t, y, args: -jax.grad(loss)(y), w, horizon, solver, inner, atol=atol).ys

        for rtol in (1e-2, 1e-3, 1e-4):
            found = np.asarray(end(*solver.tolerances(rtol, 1e-3 * rtol))).ravel()
            error = np.linalg.norm(found - reference) / np.linalg.norm(reference)
            assert 0.1 * rtol < error < 3 * rtol
