"""EXPRB42 and its phi functions, the matrix-free implicit factory, the predictive controller."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from gflow import solvers
from gflow.solvers._phi import matrix_phis, phi

FINAL = dfx.SaveAt(t1=True, solver_state=True)


def solve(vf, y0, t1, solver, rtol=1e-6, **kwargs):
    kwargs.setdefault("stepsize_controller", dfx.PIDController(rtol, rtol))
    return dfx.diffeqsolve(
        dfx.ODETerm(vf),
        solver,
        kwargs.pop("t0", 0.0),
        t1,
        kwargs.pop("dt0", None),
        y0,
        max_steps=4096,
        **kwargs,
    )


def phi_by_expm(a, k):
    """phi_k(A) from the exponential of a block matrix (Saad)."""
    n = a.shape[0]
    big = np.zeros((n * (k + 1), n * (k + 1)))
    big[:n, :n] = a
    for j in range(k):
        big[j * n : (j + 1) * n, (j + 1) * n : (j + 2) * n] = np.eye(n)
    return expm(big)[:n, k * n :]


def test_phi_of_matrices():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a = q @ np.diag([-50.0, -1.5, -1.4, -1e-3, 0.0, 0.7]) @ q.T
    values = matrix_phis(jnp.asarray(a), (1.0,))[:, 0]
    for k in range(1, 5):
        np.testing.assert_allclose(values[k - 1], phi_by_expm(a, k), rtol=1e-9, atol=1e-11)


def test_phi_derivative_with_equal_eigenvalues():
    a = jnp.diag(jnp.asarray([-2.0, -2.0, 0.0, 0.0, -30.0]))
    rng = np.random.default_rng(1)
    d = rng.normal(size=(5, 5))
    d = jnp.asarray(d + d.T)
    _, tangent = jax.jvp(lambda a: matrix_phis(a, (1.0,))[:, 0], (a,), (d,))
    e = 1e-6
    for k in range(1, 5):
        plus, minus = (phi_by_expm(np.asarray(a + s * e * d), k) for s in (1, -1))
        np.testing.assert_allclose(tangent[k - 1], (plus - minus) / (2 * e), atol=1e-7)


def test_phi_of_multiples_of_a_leading_block_and_their_derivatives():
    rng = np.random.default_rng(2)
    a, d = np.zeros((2, 20, 20))
    size, factors, e = 6, (0.75, 1.0), 1e-6
    a[:size, :size], d[:size, :size] = (x + x.T for x in rng.normal(size=(2, size, size)))
    phis = lambda a: matrix_phis(a, factors, jnp.asarray(size))
    values, tangent = jax.jvp(phis, (jnp.asarray(a),), (jnp.asarray(d),))
    np.testing.assert_allclose(values, phis(jnp.asarray(a)), rtol=1e-12)
    block, slope = a[:size, :size], d[:size, :size]
    for i, c in enumerate(factors):
        for k in range(1, 5):
            plus, minus = (phi_by_expm(c * (block + s * e * slope), k) for s in (1, -1))
            found = np.asarray([values[k - 1, i], tangent[k - 1, i]])[:, :size, :size]
            np.testing.assert_allclose(found[0], phi_by_expm(c * block, k), rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(found[1], (plus - minus) / (2 * e), rtol=1e-6, atol=1e-7)


def test_phi_is_finite_far_out():
    values = phi(jnp.asarray([-1e8, -1e3, 0.0, 1e-9]), 4)
    assert bool(jnp.all(jnp.isfinite(values)))
    np.testing.assert_allclose(values[:, 2], [1, 1, 1 / 2, 1 / 6, 1 / 24])


def hessian(n=30):
    rng = np.random.default_rng(2)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return jnp.asarray(q @ np.diag(np.logspace(-2, 3, n)) @ q.T)


def test_exact_on_linear_problems():
    a = hessian()
    solver = solvers.EXPRB42(rtol=1e-9, atol=1e-9)
    y0 = jnp.ones(30)
    sol = solve(
        lambda t, y, args: -a @ y, y0, 0.5, solver, dt0=0.5,
        stepsize_controller=dfx.ConstantStepSize(),
    )  # fmt: skip
    np.testing.assert_allclose(sol.ys[0], expm(-0.5 * np.asarray(a)) @ y0, atol=1e-6)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_step_by_the_formulas(m):
    rates, h, y0 = np.array([0.1, 1.0, 4.0, 9.0]), 0.2, np.linspace(0.3, 1, 4)
    field = lambda y: -rates * y - y**2
    tolerance = [1.0, 2e-2, 3e-4][m - 1]  # with which so many Krylov vectors are enough
    solver = solvers.EXPRB42(rtol=tolerance, atol=tolerance, accuracy=1.0)
    constant = dfx.ConstantStepSize()
    vf = lambda t, y, args: field(y)
    sol = solve(vf, jnp.asarray(y0), h, solver, dt0=h, stepsize_controller=constant, saveat=FINAL)
    assert int(sol.solver_state.basis_size) == m and int(sol.solver_state.gradients) == 1 + m + 2

    force, jacobian = field(y0), np.diag(-rates - 2 * y0)
    powers = np.stack([np.linalg.matrix_power(jacobian, j) @ force for j in range(m + 1)], axis=1)
    krylov = np.linalg.qr(powers)[0]
    basis, following, length = krylov[:, :m], krylov[:, m], krylov[:, 0] @ force
    small, beta = basis.T @ jacobian @ basis, following @ jacobian @ basis[:, -1]
    phi_of = lambda k, step: phi_by_expm(step * small, k)
    stage = 0.75 * h * length * basis @ phi_of(1, 0.75 * h)[:, 0]
    remainder = field(y0 + stage) - force - jacobian @ stage
    d = basis.T @ remainder
    end = h * length * basis @ phi_of(1, h)[:, 0] + h**2 * length * beta * phi_of(2, h)[-1, 0] * following
    end += 32 / 9 * h * (basis @ phi_of(3, h) @ d + (remainder - basis @ d) / 6)
    end += 32 / 9 * h**2 * beta * (phi_of(4, h)[-1] @ d) * following
    np.testing.assert_allclose(sol.ys[0], y0 + end, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("forced", [False, True])
def test_order(forced):
    a = hessian(8) / 100

    def vf(t, y, args):
        out = -a @ y - y**3
        return out + jnp.sin(3 * t) * jnp.arange(8) / 8 if forced else out

    y0 = jnp.linspace(-1, 1, 8)
    reference = solve(vf, y0, 2.0, dfx.Dopri8(), 1e-12).ys[0]
    errors = []
    for n in (40, 80, 160):
        sol = solve(
            vf, y0, 2.0, solvers.EXPRB42(rtol=1e-12, atol=1e-12, max_basis=8), dt0=2.0 / n,
            stepsize_controller=dfx.ConstantStepSize(),
        )  # fmt: skip
        errors.append(float(jnp.linalg.norm(sol.ys[0] - reference)))
    # The Krylov dimension falls with the step, so single ratios scatter.
    slope = np.log2(errors[0] / errors[-1]) / 2
    assert abs(slope - 3) < 0.2, errors


def test_stiff_directions_outside_of_the_krylov_space_are_smoothed(monkeypatch):
    # 200 stiff directions that all follow a slow one, of which the Krylov space holds a few
    rates = jnp.geomspace(20.0, 2000.0, 200)
    pulls = 0.06 * jnp.asarray(np.random.default_rng(0).normal(size=200))

    def vf(t, y, args):
        loss = lambda y: 0.5 * y[0] ** 2 + 0.5 * jnp.sum(rates * (y[1:] - pulls * y[0] ** 2) ** 2)
        return -jax.grad(loss)(y)

    h, y0, term = 0.1, jnp.concatenate([jnp.ones(1), pulls]), dfx.ODETerm(vf)
    exact = solve(vf, y0, h, dfx.Kvaerno5(), 1e-9, dt0=0.01).ys[0]

    def step():
        solver = solvers.EXPRB42(rtol=1e-2, atol=1e-2)
        before = solver.init(term, 0.0, h, y0, None)
        y1, _, _, after, _ = solver.step(term, 0.0, h, y0, None, before, False)
        speed = vf(h, y1, None)
        np.testing.assert_allclose(after.f0, speed, atol=1e-10)
        error = jnp.linalg.norm(y1 - exact)
        return int(after.gradients), int(after.basis_size), float(jnp.linalg.norm(speed)), float(error)

    gradients, size, speed, error = step()
    monkeypatch.setattr(solvers._exprb, "_KICK", np.inf)
    fewer, same, faster, worse = step()
    assert size == same < 10 and (gradients, fewer) == (size + 4, size + 3)
    assert speed < 0.3 * faster and error < 0.6 * worse


def test_plain_diffrax_smooths_as_well_and_an_end_outside_of_the_domain_is_refused():
    rates = jnp.geomspace(20.0, 2000.0, 200)
    vf = lambda t, y, args: -rates * (y - 0.06 * jnp.sin(y[0]) ** 2) ** 2 - y
    y0, solver = jnp.ones(200), solvers.EXPRB42(rtol=1e-2, atol=1e-2)
    constant = dfx.ConstantStepSize()
    sol = solve(vf, y0, 0.01, solver, dt0=0.01, stepsize_controller=constant, saveat=FINAL)
    term = dfx.ODETerm(vf)
    before = solver.init(term, 0.0, 0.01, y0, None)
    y1, _, _, after, _ = solver.step(term, 0.0, 0.01, y0, None, before, False)
    assert int(sol.solver_state.gradients) == int(after.gradients)
    np.testing.assert_allclose(sol.ys[0], y1, rtol=1e-9)

    # the stage is at 0.325, the end at 0.1
    edge = dfx.ODETerm(lambda t, y, args: -1.0 + 0 * jnp.sqrt(y - 0.2))
    before = solver.init(edge, 0.0, 0.9, jnp.ones(1), None)
    y1, error, _, _, _ = solver.step(edge, 0.0, 0.9, jnp.ones(1), None, before, False)
    assert np.all(np.isfinite(y1)) and np.all(np.isinf(error))


@pytest.mark.slow
@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd])
def test_derivatives(transform):
    a = hessian(6) / 100
    adjoint = dfx.ForwardMode() if transform is jax.jacfwd else dfx.RecursiveCheckpointAdjoint()

    def final(k, solver, rtol=1e-6, adjoint=adjoint):
        def vf(t, y, args):
            return -k * (a @ y) - y**3

        return solve(vf, jnp.linspace(0.5, 1, 6), 1.0, solver, rtol, adjoint=adjoint).ys[0, 0]

    solver = solvers.EXPRB42(rtol=1e-7, atol=1e-7)
    value = transform(lambda k: final(k, solver))(1.3)
    exact = transform(lambda k: final(k, dfx.Dopri8(), 1e-10))(1.3)
    np.testing.assert_allclose(value, exact, rtol=1e-3)


def test_derivatives_at_an_equilibrium():
    # where the field is zero at the start its derivative is not
    rates = jnp.asarray([1.0, 2.0])
    kwargs = dict(dt0=0.1, stepsize_controller=dfx.ConstantStepSize(), adjoint=dfx.ForwardMode())
    final = lambda y0: solve(lambda t, y, args: -rates * y, y0, 1.0, solvers.EXPRB42(), **kwargs).ys[0]
    np.testing.assert_allclose(jax.jacfwd(final)(jnp.zeros(2)), np.diag(np.exp(-rates)), atol=4e-3)


def test_what_does_not_depend_on_time_is_seen_through_other_transformations():
    rates = jnp.geomspace(1.0, 100.0, 20)
    plain = lambda t, y, args: -rates * y - y**3
    fields = [plain, jax.jit(plain), jax.checkpoint(plain), lambda t, y, args: plain(t, y, args) + 0.0 * t]
    spent = []
    for vf in fields:
        sol = solve(vf, jnp.ones(20), 1.0, solvers.EXPRB42(), saveat=FINAL)
        spent.append(int(sol.solver_state.gradients))
    assert spent[0] == spent[1] == spent[2] < spent[3]


@pytest.mark.parametrize("solver", [solvers.EXPRB42(), solvers.RKC2(), solvers.RKC3()])
def test_tolerances_may_be_traced(solver):
    rtol = jnp.asarray([1e-1, 1e-2, 1e-4])
    inner, _ = jax.vmap(lambda r: solver.tolerances(r, 1e-7))(rtol)
    np.testing.assert_allclose(inner, [solver.tolerances(r, 1e-7)[0] for r in (1e-1, 1e-2, 1e-4)])


@pytest.mark.slow
def test_float32_and_pytree_and_vmap():
    def vf(t, y, args):
        return {"a": -args * y["a"], "b": -(y["b"] ** 3)}

    y0 = {"a": jnp.ones((2, 2), jnp.float32), "b": jnp.ones(3, jnp.float32)}
    solver = solvers.EXPRB42(rtol=1e-4, atol=1e-4)
    zero, one = jnp.asarray([0, 1], jnp.float32)
    run = jax.vmap(lambda k: solve(vf, y0, one, solver, 1e-4, args=k, t0=zero).ys)
    out = run(jnp.asarray([1.0, 30.0], jnp.float32))
    assert out["a"].dtype == jnp.float32
    np.testing.assert_allclose(out["a"][:, 0, 0, 0], np.exp([-1.0, -30.0]), atol=1e-3)
    np.testing.assert_allclose(out["b"][:, 0, 0], [3**-0.5] * 2, atol=1e-3)


@pytest.mark.slow
def test_basis_exhausted_and_nan_shorten_the_step():
    rates = jnp.logspace(-2, 3, 200)
    solver = solvers.EXPRB42(rtol=1e-5, atol=1e-5, max_basis=6)
    sol = solve(lambda t, y, args: -rates * y, jnp.ones(200), 0.1, solver, 1e-5)
    np.testing.assert_allclose(sol.ys[0], np.exp(-0.1 * np.asarray(rates)), atol=1e-3)
    sol = solve(lambda t, y, args: -jnp.sqrt(y), jnp.ones(1), 1.8, solver, 1e-4, dt0=1.5)
    np.testing.assert_allclose(sol.ys[0], 0.01, atol=1e-3)


def test_flat_start():
    sol = solve(lambda t, y, args: 0 * y, jnp.ones(3), 1.0, solvers.EXPRB42())
    np.testing.assert_array_equal(sol.ys[0], 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [dfx.Kvaerno3, dfx.Kvaerno5])
def test_matrix_free_implicit(cls):
    a = hessian(40)

    def vf(t, y, args):
        return -a @ y - y**3

    y0 = jnp.ones(40)
    reference = solve(vf, y0, 1.0, dfx.Dopri8(), 1e-10).ys[0]
    sol = solve(vf, y0, 1.0, solvers.matrix_free(cls), 1e-5)
    assert float(jnp.linalg.norm(sol.ys[0] - reference)) < 1e-3
    assert int(sol.stats["num_steps"]) < 150


def test_matrix_free_refuses_nonsense():
    with pytest.raises(ValueError, match="linear_rtol"):
        solvers.matrix_free(linear_rtol=2.0)


def test_predictive_controller():
    controller = solvers.Predictive(1e-6, 1e-6)
    sol = solve(
        lambda t, y, args: y * (1 - y), jnp.asarray([0.1]), 5.0, dfx.Tsit5(),
        stepsize_controller=controller,
    )  # fmt: skip
    e = 0.1 * np.exp(5.0)
    np.testing.assert_allclose(sol.ys[0], e / (0.9 + e), atol=1e-5)
    bad = solve(
        lambda t, y, args: y * jnp.nan, jnp.ones(2), 1.0, solvers.RKC2(), dt0=0.1,
        stepsize_controller=controller, throw=False,
    )  # fmt: skip
    assert bad.result != dfx.RESULTS.successful


def test_the_first_steps_of_the_predictive_controller():
    """The first is 0.45 |y| rtol^(1/k) / |f|; if it was too short the second one makes up for it."""
    controller = solvers.Predictive(1e-3, 1e-9)
    func = lambda terms, t, y, args: jnp.asarray([3.0, 4.0])
    begun = lambda controller, y: controller.init(None, 0.0, 100.0, jnp.asarray(y), None, None, func, 3)
    end, state = begun(controller, [6.0, 8.0])
    assert end == pytest.approx(0.45 * 10 * 0.1 / 5)
    coarse = solvers.Predictive(1e-3, 1e-2)  # a size of √2 is where errors begin to count
    for y, size in (([0.0, 0.0], 2**0.5), ([0.6, 0.8], 2**0.5), ([1.2, 1.6], 2.0)):
        assert begun(coarse, y)[0] == pytest.approx(0.45 * size * 0.1 / 5)
    y, error = jnp.ones(2), jnp.full(2, 1e-14)
    for longest in (1000.0, 5.0):
        keep, start, following, _, state, _ = controller.adapt_step_size(
            0.0, 1e-3, y, y, None, error, 3, state
        )
        assert keep and start == 1e-3
        assert (following - start) / 1e-3 == pytest.approx(longest)
