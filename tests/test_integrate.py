from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix as optx
import pytest
import scipy.integrate
from systems import (
    DeepScalar,
    Diagonal,
    Factors,
    Linear,
    balancedness,
    counting,
    deep_scalar_loss,
    deep_scalar_time,
    hypentropy_limit,
    least_squares_path,
    problem_of,
    sum_of_squares,
    tanh_network,
)

import gflow


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_depth_n_toy_model_follows_its_closed_form(depth):
    target, start = np.array([12.0, 6.0, 4.0, 3.0]), 1e-3
    model = DeepScalar(jnp.full(4, start ** (1 / depth)), depth)
    t_max = max(deep_scalar_time(depth, 0.99 * s, start, s) for s in target)
    traj = gflow.integrate(
        model,
        jnp.asarray(target),
        t_max,
        loss=deep_scalar_loss,
        rtol=1e-9,
        atol=1e-14,
        save_at=401,
        observe={"sigma": lambda model, data: model.sigma},
    )
    checked = 0
    for sigma, s in zip(traj["sigma"].T, target, strict=True):
        moving = (sigma > 2 * start) & (sigma < 0.99 * s)
        times = [deep_scalar_time(depth, x, start, s) for x in sigma[moving]]
        np.testing.assert_allclose(traj.t[moving], times, rtol=1e-6)
        checked += moving.sum()
    assert checked > 100


def test_depth_two_toy_model_at_given_times():
    target, start = np.array([12.0, 6.0, 4.0, 3.0]), 1e-3
    model = DeepScalar(jnp.full(4, start**0.5), 2)
    traj = gflow.integrate(
        model,
        jnp.asarray(target),
        4.0,
        loss=deep_scalar_loss,
        rtol=1e-9,
        atol=1e-14,
        observe={"sigma": lambda model, data: model.sigma},
    )
    growth = np.exp(np.outer(traj.t, target))
    exact = start * target * growth / (target + start * (growth - 1))
    np.testing.assert_allclose(traj["sigma"], exact, rtol=1e-6)


def test_linear_regression_path_and_limit():
    random = np.random.default_rng(1)
    x, y, start = random.normal(size=(5, 12)), random.normal(size=5), random.normal(size=12)
    traj = gflow.integrate(
        Linear(jnp.asarray(start)), (x, y), 400.0, rtol=1e-10, atol=1e-12, save_models=True
    )
    exact = np.stack([least_squares_path(x, y, start, t) for t in traj.t])
    np.testing.assert_allclose(traj.models.w, exact, rtol=0, atol=1e-8)
    limit = start + np.linalg.pinv(x) @ (y - x @ start)
    np.testing.assert_allclose(traj.model.w, limit, rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 0.01])
def test_diagonal_network_chooses_the_hypentropy_minimiser(alpha):
    random = np.random.default_rng(0)
    x = random.normal(size=(5, 12))
    y = x @ np.array([1.0, -1.0, *[0.0] * 10])
    start = jnp.full(12, alpha)
    traj = gflow.integrate(
        Diagonal(start, start),
        (x, y),
        200.0,
        loss=sum_of_squares,
        rtol=1e-10,
        atol=1e-14,
        save_at=2,
    )
    reference = hypentropy_limit(x, y, alpha)
    error = np.linalg.norm(traj.model.predictor - reference) / np.linalg.norm(reference)
    assert error < 1e-6
    np.testing.assert_allclose(traj.model.u * traj.model.v, alpha**2, rtol=1e-7)


def test_balancedness_is_conserved():
    random = np.random.default_rng(0)
    sizes = (4, 5, 6, 3)
    matrices = [
        jnp.asarray(random.normal(size=(b, a)) / 2) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    ]
    # rows and columns are padded to one shape, so that the conserved matrices stack
    matrices = [jnp.zeros((6, 6)).at[: m.shape[0], : m.shape[1]].set(m) for m in matrices]
    x, y = random.normal(size=(10, 6)), random.normal(size=(10, 6))
    traj = gflow.integrate(
        Factors(matrices),
        (x, y),
        20.0,
        rtol=1e-9,
        atol=1e-12,
        observe={"b": lambda m, _: balancedness(m)},
    )
    assert traj.loss[-1] < 0.8 * traj.loss[0]
    assert np.abs(traj["b"] - traj["b"][0]).max() < 1e-8


@pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64])
@pytest.mark.parametrize(
    "solver",
    [diffrax.Tsit5(), *(pytest.param(s, marks=pytest.mark.slow) for s in (diffrax.Dopri8(), diffrax.Heun()))],
)
def test_same_steps_and_parameters_as_diffeqsolve(solver, dtype):
    network = tanh_network(dtype=dtype)
    problem = problem_of(network)
    traj = gflow.integrate(*network, 30.0, solver=solver, rtol=1e-4, atol=1e-6, save_at=2)
    with jax.numpy_dtype_promotion("standard"):
        solution = diffrax.diffeqsolve(
            gflow.flows.GradientFlow().term(problem),
            solver,
            jnp.asarray(0.0, dtype),
            jnp.asarray(30.0, dtype),
            None,
            problem.params,
            stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-6),
            max_steps=None,
        )
    assert traj.stats["steps"] == int(solution.stats["num_steps"])
    assert traj.stats["rejected"] == int(solution.stats["num_rejected_steps"])
    for ours, theirs in zip(
        jax.tree.leaves(eqx.filter(traj.model, eqx.is_inexact_array)),
        jax.tree.leaves(solution.ys),
        strict=True,
    ):
        assert ours.dtype == dtype
        # gflow computes with one vector of all parameters: float32 rounds its sums in another order
        atol = 1e-12 if dtype == np.float64 else 1e-6
        np.testing.assert_allclose(ours, theirs[-1], rtol=0, atol=atol)


def test_gradients_spent_on_the_spectral_radius_are_told():
    network = tanh_network()
    stats = [
        gflow.integrate(*network, 5.0, solver=solver, save_at=2).stats
        for solver in (gflow.solvers.RKC2(), diffrax.Tsit5())
    ]
    # power iteration at the start takes four at least
    assert 4 <= stats[0]["radius_gradients"] < stats[0]["gradients"] / 2
    assert stats[1]["radius_gradients"] == 0


@pytest.mark.parametrize(
    "solver",
    [
        diffrax.Kvaerno3(),
        diffrax.HalfSolver(diffrax.Bosh3()),
        diffrax.Kvaerno5(
            root_finder=diffrax.with_stepsize_controller_tols(optx.Newton)(
                linear_solver=lineax.GMRES(rtol=1e-6, atol=1e-9)
            )
        ),
        diffrax.Midpoint(),
        diffrax.Bosh3(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_every_kind_of_diffrax_solver_agrees_with_scipy(solver):
    random = np.random.default_rng(2)
    x, y = random.normal(size=(8, 3)), random.normal(size=8)
    start = np.array([0.5, -0.2, 0.1])
    model = DeepLinear(jnp.asarray(start), jnp.asarray(1.3))

    def field(_, p):
        w, a = p[:3], p[3]
        residual = a * x @ w - y
        return -np.append(a * x.T @ residual, (x @ w) @ residual) / len(y)

    exact = scipy.integrate.solve_ivp(
        field, (0, 5), np.append(start, 1.3), method="DOP853", rtol=1e-11, atol=1e-12
    ).y[:, -1]
    traj = gflow.integrate(model, (x, y), 5.0, solver=solver, rtol=1e-6, atol=1e-8, save_at=3)
    np.testing.assert_allclose(np.append(traj.model.w, traj.model.a), exact, atol=3e-5)


class DeepLinear(eqx.Module):
    w: jax.Array
    a: jax.Array

    def __call__(self, x):
        return self.a * (self.w @ x)


@pytest.mark.parametrize("solver", [diffrax.Euler(), diffrax.Midpoint(), diffrax.ImplicitEuler()])
def test_fixed_steps(solver):
    x, y = np.eye(2), np.array([1.0, 2.0])
    traj = gflow.integrate(
        Linear(jnp.zeros(2)),
        (x, y),
        1.0,
        solver=solver,
        controller=diffrax.ConstantStepSize(),
        dt0=0.1,
        save_at=3,
    )
    z = -0.5 * 0.1  # the eigenvalue of the Hessian (1/n) XᵀX times the step
    factor = {
        "Euler": 1 + z,
        "Midpoint": 1 + z + z**2 / 2,
        "ImplicitEuler": 1 / (1 - z),
    }[type(solver).__name__]
    np.testing.assert_allclose(traj.model.w, y * (1 - factor**10), rtol=1e-5)
    assert traj.stats["steps"] == 10


@pytest.mark.slow
def test_what_is_recorded_does_not_change_the_path():
    network = tanh_network()
    runs = [
        gflow.integrate(*network, 10.0, save_at=2),
        gflow.integrate(*network, 10.0, save_at=101),
        gflow.integrate(*network, 10.0, save_at=1001),
        gflow.integrate(*network, 10.0, save_at=[0.1, 7.0], save_models=True),
        gflow.integrate(
            *network,
            10.0,
            observe={"sharpness": gflow.observe.Sharpness(), "n": lambda m, d: m.layers[0].weight},
        ),
    ]
    first, *others = [jax.tree.leaves(eqx.filter(run.model, eqx.is_array)) for run in runs]
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert np.array_equal(a, b)
    assert len({run.stats["steps"] for run in runs}) == 1


def test_records_between_steps_have_the_accuracy_of_the_solver():
    network = tanh_network()
    times = np.linspace(0, 10, 38)
    fine = gflow.integrate(*network, 10.0, rtol=1e-10, atol=1e-12, save_at=times)
    solver = diffrax.Tsit5()
    coarse = gflow.integrate(*network, 10.0, solver=solver, rtol=1e-6, atol=1e-8, save_at=times)
    assert coarse.stats["steps"] < len(times)  # so that most records are interpolated
    np.testing.assert_allclose(coarse.loss, fine.loss, rtol=1e-5)
    np.testing.assert_array_equal(coarse.t, times)


def test_records_are_those_of_the_saved_models():
    network = tanh_network()
    traj = gflow.integrate(*network, 3.0, save_at=4, save_models=True)
    problem = problem_of(network)
    for i in range(4):
        params = jax.tree.map(lambda a, i=i: a[i], eqx.filter(traj.models, eqx.is_array))
        value, gradient = jax.value_and_grad(problem.value)(params)
        flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient)])
        np.testing.assert_allclose(traj.loss[i], value, rtol=1e-12)
        np.testing.assert_allclose(traj.gradient_norm[i], np.linalg.norm(flat), rtol=1e-12)


def test_other_numbers_compile_nothing():
    network = tanh_network(sizes=(5, 7, 3))
    calls = dict(stop=gflow.stop.LossBelow(1e-9), observe={"n": _weight})
    gflow.integrate(*network, 2.0, rtol=1e-4, save_at=11, **calls)
    with jax.log_compiles(False), _count_compilations() as compiled:
        gflow.integrate(*network, 3.0, rtol=5e-5, atol=1e-8, save_at=11, **calls)
        gflow.integrate(*network, 3.0, save_at=np.linspace(0, 1, 11), **calls)
        gflow.integrate(*network, 3.0, **calls | {"stop": gflow.stop.LossBelow(1e-8)})
    assert compiled == []
    controlled = lambda rtol: gflow.integrate(
        *network,
        1.0,
        controller=diffrax.PIDController(rtol=rtol, atol=1e-7),
        observe=[gflow.observe.Sharpness(rtol=rtol)],
    )
    controlled(1e-4)
    with _count_compilations() as compiled:
        controlled(1e-5)
    assert compiled == []


def _weight(model, data):
    return model.layers[0].weight


class _count_compilations:
    def __enter__(self):
        self.compiled = []
        self.listener = lambda event, duration, **kw: (
            self.compiled.append(event) if event.endswith("backend_compile_duration") else None
        )
        jax.monitoring.register_event_duration_secs_listener(self.listener)
        return self.compiled

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self.listener)


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Dopri8(), diffrax.Heun(), diffrax.Euler()])
def test_gradients_are_counted_exactly(solver):
    loss, counted = counting(gflow.losses.Squared())
    x, y = np.eye(2), np.array([1.0, 2.0])
    fixed = (
        {"controller": diffrax.ConstantStepSize(), "dt0": 0.05} if isinstance(solver, diffrax.Euler) else {}
    )
    traj = gflow.integrate(Linear(jnp.zeros(2)), (x, y), 3.0, loss=loss, solver=solver, save_at=7, **fixed)
    jax.effects_barrier()
    assert traj.stats["gradients"] == counted[0]
    assert traj.stats["record_gradients"] == 7 + 2
    stopped = gflow.integrate(
        Linear(jnp.zeros(2)),
        (x, y),
        3.0,
        loss=loss,
        solver=solver,
        save_at=7,
        stop=gflow.stop.GradientNormBelow(0.5),
        **fixed,
    )
    jax.effects_barrier()
    assert stopped.status == "stopped"
    assert stopped.stats["gradients"] == counted[0] - traj.stats["gradients"]


def test_stop_is_located_on_the_continuous_path():
    # dw/dt = 1 − w from 0, so that w = 1 − e^{−t} and L = ½ e^{−2t}
    x, y = np.ones((1, 1)), np.ones(1)
    kwargs = dict(rtol=1e-9, atol=1e-12, save_at=[0.5, 1.0, 3.0])
    model = Linear(jnp.zeros(1))
    traj = gflow.integrate(model, (x, y), 3.0, stop=gflow.stop.LossBelow(0.01), **kwargs)
    exact = -0.5 * np.log(0.02)
    assert traj.status == "stopped" and traj.ok and "LossBelow" in traj.reason
    np.testing.assert_allclose(traj.t, [0.5, 1.0, exact], rtol=1e-8)
    np.testing.assert_allclose(traj.loss[-1], 0.01, rtol=1e-8)
    np.testing.assert_allclose(traj.model.w, 1 - np.exp(-exact), rtol=1e-8)

    traj = gflow.integrate(model, (x, y), 3.0, stop=gflow.stop.GradientNormBelow(0.2), **kwargs)
    np.testing.assert_allclose(traj.t[-1], -np.log(0.2), rtol=1e-8)

    traj = gflow.integrate(
        model,
        (x, y),
        3.0,
        stop=[gflow.stop.Crosses("w", 0.9), gflow.stop.Crosses("w", 0.3)],
        observe={"w": lambda model, data: model.w[0]},
        **kwargs,
    )
    np.testing.assert_allclose(traj.t, [-np.log(0.7)], rtol=1e-8)
    np.testing.assert_allclose(traj["w"], [0.3], rtol=1e-8)


def test_stop_at_the_start_and_endless_horizon():
    x, y = np.ones((1, 1)), np.ones(1)
    model = Linear(jnp.zeros(1))
    traj = gflow.integrate(model, (x, y), 3.0, stop=gflow.stop.LossBelow(0.6))
    assert traj.status == "stopped" and traj.t.tolist() == [0.0]
    traj = gflow.integrate(
        model, (x, y), np.inf, stop=gflow.stop.LossBelow(1e-6), save_at=[1.0], rtol=1e-9, atol=1e-13
    )
    np.testing.assert_allclose(traj.t, [1.0, -0.5 * np.log(2e-6)], rtol=1e-7)


def test_only_the_trainable_part_moves():
    network, data = tanh_network()
    spec = jax.tree.map(lambda _: False, network)
    spec = eqx.tree_at(lambda m: m.layers[-1].weight, spec, True)
    traj = gflow.integrate(network, data, 1.0, trainable=spec)
    assert np.array_equal(traj.model.layers[0].weight, network.layers[0].weight)
    assert not np.array_equal(traj.model.layers[-1].weight, network.layers[-1].weight)
    # with one layer free, the problem is linear least squares in W of f = W h(x) + b
    x, y = data
    hidden = np.asarray(jax.vmap(lambda v: _hidden(network, v))(x))
    offset = np.asarray(network.layers[-1].bias)
    exact = [
        least_squares_path(hidden, np.asarray(y)[:, k] - offset[k], np.asarray(w), 1.0)
        if len(hidden) <= hidden.shape[1]
        else _overdetermined(hidden, np.asarray(y)[:, k] - offset[k], np.asarray(w), 1.0)
        for k, w in enumerate(network.layers[-1].weight)
    ]
    np.testing.assert_allclose(traj.model.layers[-1].weight, np.stack(exact), rtol=1e-3, atol=1e-5)


def _hidden(network, x):
    for layer in network.layers[:-1]:
        x = jnp.tanh(layer(x))
    return x


def _overdetermined(x, y, start, t):
    gram = x.T @ x / len(x)
    eigenvalues, u = np.linalg.eigh(gram)
    fit = np.linalg.solve(gram, x.T @ y / len(x))
    return fit + u @ (np.exp(-eigenvalues * t) * (u.T @ (start - fit)))


def test_a_tolerance_that_hides_a_tiny_start_is_flagged():
    model = gflow.models.Diagonal.constant(2, 1e-7, signed=False)
    data = np.eye(2), np.array([2.0, 1.0])
    with pytest.warns(UserWarning, match="not far below the scale"):
        traj = gflow.integrate(model, data, 40.0)
    assert len(traj.warnings) == 1
    assert not gflow.integrate(model, data, 40.0, atol=1e-10).warnings


def test_gradients_of_rejected_first_steps_are_counted():
    loss, counted = counting(gflow.losses.Squared())
    x, y = 3 * np.eye(2), np.array([1.0, 2.0])
    traj = gflow.integrate(Linear(jnp.zeros(2)), (x, y), 3.0, loss=loss, solver=diffrax.Tsit5(), dt0=100.0)
    jax.effects_barrier()
    assert traj.stats["rejected"] > 1 and traj.stats["gradients"] == counted[0]


@pytest.mark.parametrize("t_max", [0.1, 0.3, 0.7])
def test_save_times_of_single_precision_reach_the_horizon(t_max):
    times = np.linspace(0, t_max, 5, dtype=np.float32)
    traj = gflow.integrate(Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1)), t_max, save_at=times)
    assert traj.status == "success" and traj.t[-1] == pytest.approx(t_max, rel=1e-7)


def test_data_keep_their_type():
    data = Pair(np.ones((1, 1)), np.ones(1))
    loss = lambda model, d: 0.5 * jnp.mean((jax.vmap(model)(d.x) - d.y) ** 2)
    traj = gflow.integrate(Linear(jnp.zeros(1)), data, 1.0, loss=loss)
    assert traj.loss[-1] == pytest.approx(0.5 * np.exp(-2), rel=1e-3)


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


def test_an_interrupt_inside_a_callback():
    def read(value):
        if value > 0.5:
            raise KeyboardInterrupt
        return value

    def shown(model, data):
        return jax.pure_callback(read, jax.ShapeDtypeStruct((), model.w.dtype), model.w[0])

    data = (np.ones((1, 1)), np.ones(1))
    traj = gflow.integrate(Linear(jnp.zeros(1)), data, 3.0, observe={"shown": shown})
    assert traj.status == "interrupted"
    assert 0.4 < traj["shown"][-1] <= 0.5


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "log_loss", "log_t"])
def test_names_of_what_trajectories_hold_are_refused(name):
    arguments = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    with pytest.raises(ValueError, match="records anyway"):
        gflow.integrate(*arguments, 1.0, observe={name: lambda model, data: model.w[0]})


def test_no_stop_may_be_said_as_none():
    arguments = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    assert gflow.integrate(*arguments, 1.0, stop=None).status == "success"
    assert gflow.descend(*arguments, 0.1, 3, stop=None).status == "success"


def test_a_stop_that_never_comes_is_told_from_a_field_that_breaks():
    stop = gflow.stop.LossBelow(-1.0)
    traj = gflow.integrate(
        Linear(jnp.zeros(1, "float32")),
        None,
        np.inf,
        loss=lambda model, data: 0.5 * jnp.sum(model.w**2),
        stop=stop,
        save_at=[1.0],
        throw=False,
    )
    assert traj.status == "nonfinite" and "no stop condition held" in traj.reason
