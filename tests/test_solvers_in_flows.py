"""The solvers made for gradient flow, inside `gflow.integrate`."""

import inspect

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from systems import counting, ctrl_c_at_record, tanh_network

import gflow
from gflow import _switch
from gflow._integrate import flow_run
from gflow.solvers._kinks import has_kinks

SOLVERS = [gflow.solvers.RKC2(), gflow.solvers.RKC3(), gflow.solvers.EXPRB42()]
name_of = lambda solver: type(solver).__name__
# RKC2 is the program of RKC3 but for its memory.
EACH = pytest.mark.parametrize(
    "solver", [pytest.param(SOLVERS[0], marks=pytest.mark.slow), *SOLVERS[1:]], ids=name_of
)


def parameters(model):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))])


@pytest.fixture(scope="module")
def reference():
    network = tanh_network()
    return parameters(
        gflow.integrate(*network, 40.0, solver=diffrax.Dopri8(), rtol=1e-11, atol=1e-13, save_at=2).model
    )


@EACH
@pytest.mark.parametrize("rtol", [1e-3, 1e-4])
def test_delivers_the_error_that_was_asked_for(solver, rtol, reference):
    traj = gflow.integrate(*tanh_network(), 40.0, solver=solver, rtol=rtol, atol=0.1 * rtol, save_at=2)
    error = np.linalg.norm(parameters(traj.model) - reference) / np.linalg.norm(reference)
    assert 0.01 * rtol < error < 3 * rtol


@pytest.mark.parametrize("t_max", [10.0, 1000.0])
@pytest.mark.parametrize("solver", [None, gflow.solvers.EXPRB42()], ids=["default", "EXPRB42"])
def test_records_between_steps_are_as_accurate_as_the_end(solver, t_max):
    """On a linear flow an exponential step may be as long as it likes, and a cubic with slopes is wrong."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 600)) * np.logspace(0, -1.5, 600)
    w = rng.normal(size=600)
    model = eqx.tree_at(
        lambda m: m.weight,
        eqx.nn.Linear(600, "scalar", use_bias=False, key=jax.random.key(0)),
        jnp.zeros((1, 600)),
    )
    traj = gflow.integrate(model, (x, x @ w), t_max, solver=solver, save_models=True)
    assert traj.stats["solver"] == "EXPRB42"
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    exact = ((vectors.T @ w) * -np.expm1(-np.outer(traj.t, values))) @ vectors.T
    found = np.asarray(traj.models.weight)[:, 0]
    errors = np.linalg.norm(found - exact, axis=1)[1:] / np.linalg.norm(exact, axis=1)[1:]
    assert traj.stats["steps"] < 60 and errors.max() < 1e-4
    losses = np.mean(((exact - w) @ x.T) ** 2, axis=1) / 2
    np.testing.assert_allclose(traj.loss, losses, rtol=1e-4)


@pytest.mark.parametrize("solver", [gflow.solvers.EXPRB42(), gflow.solvers.EXPRB43()], ids=name_of)
def test_what_rests_is_recorded_without_rounding(solver):
    loss = lambda model, data: 0.5 * jnp.sum((model["w"][:-1] - 2) ** 2)
    start = np.full(4, 0.1)
    traj = gflow.integrate({"w": jnp.asarray(start)}, None, 5.0, loss=loss, solver=solver, save_models=True)
    assert np.all(np.asarray(traj.models["w"])[:, -1] == start[-1])
    np.testing.assert_allclose(traj.models["w"][:, 0], 2 - 1.9 * np.exp(-traj.t), rtol=1e-4)


@EACH
def test_gradients_are_counted_exactly(solver):
    loss, counted = counting(gflow.losses.Squared())
    traj = gflow.integrate(*tanh_network(), 20.0, loss=loss, solver=solver, save_at=5)
    jax.effects_barrier()
    assert traj.stats["gradients"] == counted[0]
    assert traj.stats["rejected"] >= 0 and traj.stats["solver"] == type(solver).__name__


def test_the_gradient_that_the_controller_asks_for_is_counted():
    loss, counted = counting(gflow.losses.Squared())
    controller = gflow.solvers.Predictive(1e-4, 1e-7)
    options = dict(solver=diffrax.Tsit5(), controller=controller, save_at=5)
    traj = gflow.integrate(*tanh_network(), 5.0, loss=loss, **options)
    jax.effects_barrier()
    assert traj.stats["gradients"] == counted[0]


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS[1:], ids=name_of)
def test_what_is_recorded_does_not_change_the_path(solver):
    few, many = (gflow.integrate(*tanh_network(), 10.0, solver=solver, save_at=count) for count in (2, 101))
    assert np.array_equal(parameters(few.model), parameters(many.model))


@pytest.mark.slow
def test_stiffness_costs_its_square_root_and_not_itself():
    eigenvalues = jnp.geomspace(1e-2, 1e4, 30)
    loss = lambda model, data: 0.5 * jnp.sum(eigenvalues * model["w"] ** 2)
    start = jnp.ones(30)
    for solver in SOLVERS:
        traj = gflow.integrate({"w": start}, None, 10.0, loss=loss, solver=solver, rtol=1e-3, save_at=2)
        exact = np.exp(-np.asarray(eigenvalues) * 10.0)
        assert np.linalg.norm(traj.model["w"] - exact) < 3e-3 * np.linalg.norm(start)
        # an explicit method with the stability interval of Tsit5 would need λT/3.3 steps of six
        assert traj.stats["gradients"] < 0.05 * 6 * 1e4 * 10 / 3.3


@EACH
def test_a_gradient_that_turns_nan_is_told_from_stiffness(solver):
    # w' = 2 - w from 1 reaches 1.5, where the root ends, at t = ln 2
    loss = lambda model, data: 0.5 * jnp.sum((model["w"] - 2) ** 2) + 0 * jnp.sum(jnp.sqrt(1.5 - model["w"]))
    traj = gflow.integrate({"w": jnp.ones(600)}, None, 5.0, loss=loss, solver=solver, throw=False)
    assert traj.status == "nonfinite" and traj.stats["steps"] < 200
    np.testing.assert_allclose(traj.t[-1], np.log(2), rtol=1e-3)
    assert np.all(np.isfinite(traj.loss)) and np.all(np.asarray(traj.model["w"]) <= 1.5)


@EACH
@pytest.mark.slow
def test_an_endless_horizon_from_rest(solver):
    # nothing moves, so that neither the speed nor the horizon says how long the first step may be
    loss = lambda model, data: jnp.sum(model["w"] ** 2)
    never = gflow.stop.LossBelow(-1.0)
    kwargs = dict(loss=loss, solver=solver, save_at=[5.0], stop=never, max_steps=200, throw=False)
    traj = gflow.integrate({"w": jnp.zeros(3)}, None, np.inf, **kwargs)
    assert traj.t[0] == 5.0 and traj.loss[0] == 0.0 and traj.status in ("max_steps", "success")


@pytest.mark.slow
def test_the_choice_is_told_and_can_be_overruled():
    network = tanh_network(sizes=(3, 4, 1))
    small = gflow.integrate(*network, 0.1, save_at=2)
    assert small.stats["solver"] == "Tsit5" and "small" in small.stats["solver_reason"]
    large = gflow.integrate(*tanh_network(sizes=(3, 200, 1)), 0.1, save_at=2)
    assert large.stats["solver"] == "EXPRB42" and "eigenvalues" in large.stats["solver_reason"]
    named = gflow.integrate(*network, 0.1, solver=diffrax.Heun(), save_at=2)
    assert named.stats["solver"] == "Heun" and named.stats["solver_reason"] == "named by the user"
    problem = gflow.Problem(*tanh_network(sizes=(3, 200, 1)))
    choose = gflow.solvers.choose
    for rtol, symmetric in ((1e-7, True), (1e-3, False)):
        assert type(choose(problem, rtol, symmetric=symmetric).solver) is diffrax.Tsit5
    assert type(choose(problem, 1e-3, symmetric=True).solver) is gflow.solvers.EXPRB42


# A spectrum without gaps, for which Krylov spaces grow, and a little that is not linear.
LEVELS = jnp.linspace(0.0, 300.0, 600)
CROWDED = {"w": jnp.asarray(np.random.default_rng(0).normal(size=600))}


CROWDED_UNTIL = 600.0


def crowded(model, data):
    return 0.5 * jnp.sum(LEVELS * model["w"] ** 2) + 0.25 * jnp.sum(model["w"] ** 4)


def crowded_at(t):
    """From w' = -λw - w³: w⁻² + 1/λ grows like exp(2λt)."""
    start, rate = np.asarray(CROWDED["w"]), np.asarray(LEVELS).copy()
    rate[0] = 1e-14
    decay = np.exp(-rate * t)
    return start * decay / np.sqrt(1 - start**2 * np.expm1(-2 * rate * t) / rate)


def run_crowded(loss=crowded, **options):
    kwargs = dict(loss=loss, rtol=3e-4, atol=3e-7, save_at=2) | options
    return gflow.integrate(CROWDED, None, CROWDED_UNTIL, **kwargs)


@pytest.mark.slow
def test_the_solver_changes_where_krylov_spaces_do_not_pay():
    loss, counted = counting(crowded)
    traj = run_crowded(loss)
    jax.effects_barrier()
    assert traj.stats["solver"] == "EXPRB42, then RKC3" and "limit the steps" in traj.stats["solver_reason"]
    assert traj.stats["gradients"] == counted[0]
    # which alone takes twice as many
    assert traj.stats["gradients"] < 0.7 * run_crowded(solver=gflow.solvers.EXPRB42()).stats["gradients"]
    exact = crowded_at(CROWDED_UNTIL)
    assert np.linalg.norm(traj.model["w"] - exact) < 1e-3 * np.linalg.norm(exact)


@pytest.mark.slow
def test_what_is_recorded_does_not_change_when_the_solver_changes():
    few, many = run_crowded(), run_crowded(save_at=200)
    assert "then" in few.stats["solver"] and few.stats["solver_reason"] == many.stats["solver_reason"]
    assert np.array_equal(few.model["w"], many.model["w"])
    assert few.stats["steps"] == many.stats["steps"]
    for t in (5.0, 100.0, 500.0):  # before and after
        k = int(np.argmin(np.abs(many.t - t)))
        exact = 0.5 * np.sum(np.asarray(LEVELS) * crowded_at(many.t[k]) ** 2) + 0.25 * np.sum(
            crowded_at(many.t[k]) ** 4
        )
        np.testing.assert_allclose(many.loss[k], exact, rtol=2e-2)


@pytest.mark.slow
def test_a_stop_after_the_solver_has_changed_and_too_few_steps():
    level = float(crowded({"w": jnp.asarray(crowded_at(500.0))}, None))
    stopped = run_crowded(stop=gflow.stop.LossBelow(level))
    assert stopped.status == "stopped" and "RKC3" in stopped.stats["solver"]
    np.testing.assert_allclose(stopped.t[-1], 500.0, rtol=2e-2)
    short = run_crowded(max_steps=stopped.stats["steps"] - 3, throw=False)
    assert short.status == "max_steps" and short.stats["steps"] == stopped.stats["steps"] - 3


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_solver_that_it_had(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        ctrl_c_at_record(patch, 10)
        partial = run_crowded(save_at=11, checkpoint=tmp_path / "run.npz")
    assert partial.status == "interrupted" and "RKC3" in partial.stats["solver"]
    resumed, whole = run_crowded(save_at=11, checkpoint=tmp_path / "run.npz"), run_crowded(save_at=11)
    assert resumed.status == "success" and np.array_equal(resumed.model["w"], whole.model["w"])
    for name in ("solver", "solver_reason", "steps", "rejected", "gradients"):
        assert resumed.stats[name] == whole.stats[name]


@pytest.mark.slow
def test_an_interrupt_while_the_solver_changes_leaves_a_checkpoint_of_one_solver(tmp_path, monkeypatch):
    def interrupting(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_switch, "_entered", interrupting)
    partial = run_crowded(checkpoint=tmp_path / "run.npz")
    monkeypatch.undo()
    assert partial.status == "interrupted" and partial.stats["solver"] == "EXPRB42"
    resumed, whole = run_crowded(checkpoint=tmp_path / "run.npz"), run_crowded()
    assert resumed.stats["solver_reason"] == whole.stats["solver_reason"]
    assert np.array_equal(resumed.model["w"], whole.model["w"])


@pytest.mark.slow
def test_a_nan_in_the_last_krylov_space_keeps_the_solver():
    problem = gflow.Problem(CROWDED, None, crowded)
    runs = [flow_run(problem, CROWDED_UNTIL, rtol=3e-4, atol=3e-7) for _ in range(2)]
    path = runs[0].path
    advance, state = eqx.filter_jit(type(path).advance), path.start()
    changed = False
    while not changed:  # at the first place where it would change
        state = advance(path, state, jnp.asarray(CROWDED_UNTIL), jnp.asarray(8))
        after, _ = runs[0].switch.review(state)
        changed = type(after.solver) is gflow.solvers.RKC3
        assert changed or runs[1].switch.review(state)[1] is state
    state = eqx.tree_at(lambda s: s.solver_state.small, state, state.solver_state.small * jnp.nan)
    path, after = runs[1].switch.review(state)
    assert type(path.solver) is gflow.solvers.EXPRB42 and after is state


@pytest.mark.slow
def test_the_run_changes_back_where_the_change_was_too_early(monkeypatch):
    monkeypatch.setattr(_switch, "_FULL", 0.1)  # where Krylov spaces are small yet
    monkeypatch.setattr(_switch, "_CLOSE", np.inf)
    early = run_crowded(rtol=1e-5, atol=1e-8)
    assert early.stats["solver"].startswith("EXPRB42, then RKC3, then EXPRB42")
    assert "dearer" in early.stats["solver_reason"]
    exact = crowded_at(CROWDED_UNTIL)
    assert np.linalg.norm(early.model["w"] - exact) < 3e-5 * np.linalg.norm(exact)


def factorised(target, start, horizon, rtol):
    """A product of three matrices, by the default and by RKC3."""
    loss = lambda model, data: 0.5 * jnp.sum((model["w"][2] @ model["w"][1] @ model["w"][0] - target) ** 2)
    kwargs = dict(loss=loss, rtol=rtol, atol=0.1 * rtol, save_at=2)
    model = {"w": jnp.asarray(start)}
    return (gflow.integrate(model, None, horizon, solver=s, **kwargs) for s in (None, gflow.solvers.RKC3()))


@pytest.mark.slow
def test_a_few_outlying_eigenvalues_keep_the_krylov_solver():
    random = np.random.default_rng(0)
    target = np.outer(random.normal(size=15), random.normal(size=15))
    default, stabilised = factorised(target, 0.2 * random.normal(size=(3, 15, 15)), 60.0, 1e-3)
    assert default.stats["solver"] == "EXPRB42"
    assert default.stats["gradients"] < 0.7 * stabilised.stats["gradients"]


@pytest.mark.slow
def test_a_few_directions_that_become_stiff_keep_the_krylov_solver():
    random = np.random.default_rng(0)
    u, v = (np.linalg.qr(random.normal(size=(15, 15)))[0] for _ in range(2))
    target = (u[:, :3] * np.array([12.0, 6.0, 4.0])) @ v[:, :3].T
    start = 0.05 * random.normal(size=(3, 15, 15))
    default, stabilised = factorised(target, start, 500.0, 1e-4)
    assert default.stats["solver"] == "EXPRB42"
    assert default.stats["gradients"] < 0.5 * stabilised.stats["gradients"]
    np.testing.assert_allclose(default.model["w"], stabilised.model["w"], atol=2e-3)
    default, stabilised = factorised(target, start, 500.0, 1e-6)  # hundreds of short steps
    assert default.stats["solver"] == "EXPRB42"
    assert default.stats["gradients"] < 0.7 * stabilised.stats["gradients"]
    np.testing.assert_allclose(default.model["w"], stabilised.model["w"], atol=2e-5)


SMOOTH = [jnp.tanh, jax.nn.softplus, jax.nn.gelu, jax.nn.silu, jax.nn.log_sigmoid, jnp.sin]
KINKED = [jax.nn.relu, jax.nn.leaky_relu, jnp.abs, jax.nn.relu6, lambda x: jnp.where(x > 0, x, 0.0)]


@pytest.mark.parametrize("activation", [*SMOOTH, *KINKED])
def test_networks_with_kinks_are_known_by_their_program(activation):
    x = jnp.ones((4, 3))
    model = eqx.nn.MLP(3, 20, 20, 2, activation=activation, key=jax.random.key(0))
    targets = {None: jnp.ones((4, 20)), gflow.losses.CrossEntropy(): jnp.arange(4)}
    for (loss, y), chunk_size in zip(targets.items(), (3, None), strict=True):
        problem = gflow.Problem(model, (x, y), loss, chunk_size=chunk_size)
        reason = gflow.solvers.choose(problem, 1e-3, symmetric=True).reason
        assert ("kinks" in reason) == (activation in KINKED)


@pytest.mark.parametrize("layer", [eqx.nn.LayerNorm(20), eqx.nn.GroupNorm(4, 20), lambda x: x / jnp.std(x)])
def test_layers_that_normalise_have_no_kinks(layer):
    keys = jax.random.split(jax.random.key(0))
    linear = [eqx.nn.Linear(20, 20, key=key) for key in keys]
    model = eqx.nn.Sequential([linear[0], eqx.nn.Lambda(layer), eqx.nn.Lambda(jnp.tanh), linear[1]])
    problem = gflow.Problem(model, (jnp.ones((4, 20)), jnp.ones((4, 20))))
    assert "kinks" not in gflow.solvers.choose(problem, 1e-3, symmetric=True).reason


@EACH
@pytest.mark.slow
def test_small_parameters_are_resolved_relative_to_themselves(solver):
    # sigma = w², each from 1e-6 on its own: sigma' = sigma (target - sigma), learned one after the other
    target, start = np.array([4.0, 3.0, 2.0, 1.0]), 1e-12
    horizon = 1.2 * np.log(1 / start) / 2
    exact = target / (1 + (target / start - 1) * np.exp(-target * horizon))
    loss = lambda model, data: jnp.sum((model["w"] ** 2 - target) ** 2) / 8
    kwargs = dict(loss=loss, solver=solver, rtol=1e-4, atol=1e-12, save_at=2)
    traj = gflow.integrate({"w": jnp.full(4, 1e-6)}, None, horizon, **kwargs)
    np.testing.assert_allclose(traj.model["w"] ** 2, exact, rtol=1e-2)


def test_a_choice_is_made_for_a_problem():
    model, _ = tanh_network()
    choose = inspect.unwrap(gflow.solvers.choose)  # without the types that the tests check at every call
    with pytest.raises(ValueError, match="must be a gflow.Problem, but is a MLP; gflow.Problem"):
        choose(model, 1e-4, symmetric=True)


CAPPED = [
    pytest.param(gflow.solvers.RKC2(max_stages=10), id="RKC2"),
    pytest.param(gflow.solvers.RKC3(max_stages=10), id="RKC3"),
    pytest.param(gflow.solvers.EXPRB42(max_basis=2), id="EXPRB42"),
]


@pytest.mark.parametrize("solver", CAPPED)
def test_a_refused_step_that_nobody_can_shorten_is_no_success(solver):
    stiff = jnp.linspace(1.0, 1e6, 50)
    steps = diffrax.ConstantStepSize()
    term = diffrax.ODETerm(lambda t, y, args: -stiff * y)
    found = diffrax.diffeqsolve(
        term, solver, 0.0, 1.0, 0.1, jnp.ones(50), stepsize_controller=steps, throw=False
    )
    assert found.result == diffrax.RESULTS.dt_min_reached
    loss = lambda model, data: 0.5 * jnp.sum(stiff * model["w"] ** 2)
    start = {"w": jnp.ones(50)}
    traj = gflow.integrate(start, None, 1.0, loss=loss, solver=solver, controller=steps, dt0=0.1, throw=False)
    assert traj.status == "solver_failure" and np.array_equal(traj.model["w"], start["w"])
    assert "refused the step from t = 0" in traj.reason and "ConstantStepSize can't shorten it" in traj.reason


@pytest.mark.parametrize("solver", [gflow.solvers.RKC2(), gflow.solvers.RKC3()])
def test_a_start_close_to_where_the_field_is_not_defined(solver):
    # where the first probes of the spectral radius make w negative
    def loss(model, data):
        w, v = model["w"], model["v"]
        return 1e-9 * (w * jnp.log(w / 1e-9) - w) + 0.5 * v**2

    start = {"w": jnp.array(2e-9), "v": jnp.array(1.0)}
    traj = gflow.integrate(start, None, 3.0, loss=loss, solver=solver, rtol=1e-5, atol=1e-13)
    # u = log(w / 1e-9): w' = -1e-9 u, so that u' e^u = -u
    exact = solve_ivp(lambda t, u: -u * np.exp(-u), (0, 3), [np.log(2)], rtol=1e-10, atol=1e-12).y[0, -1]
    assert float(traj.model["w"]) == pytest.approx(1e-9 * np.exp(exact), rel=1e-3)
    assert float(traj.model["v"]) == pytest.approx(np.exp(-3.0), rel=1e-4)


def test_a_solver_gets_the_tolerances_of_a_controller_by_name():
    rates = jnp.linspace(1.0, 1000.0, 200)
    loss = lambda model, data: 0.5 * jnp.sum(rates * model["w"] ** 2)
    control = diffrax.PIDController(rtol=1e-9, atol=1e-12)
    solver = gflow.solvers.EXPRB42()
    traj = gflow.integrate({"w": jnp.ones(200)}, None, 0.5, loss=loss, solver=solver, controller=control)
    np.testing.assert_allclose(traj.model["w"], np.exp(-0.5 * rates), atol=1e-10)


@pytest.mark.parametrize("activation", [lambda x: x * (x > 0), lambda x: (x > 0).astype(x.dtype) * x])
def test_a_comparison_that_multiplies_makes_a_kink(activation):
    assert has_kinks(lambda x: jnp.sum(activation(x)), jnp.ones(3))


@pytest.mark.parametrize("solver", [gflow.solvers.EXPRB42(), gflow.solvers.EXPRB43()])
@pytest.mark.filterwarnings("ignore:Complex dtype support")
def test_complex_states_are_refused_where_they_are_not_for_the_method(solver):
    control = diffrax.PIDController(rtol=1e-4, atol=1e-7)
    term = diffrax.ODETerm(lambda t, y, args: -y)
    with pytest.raises(ValueError, match="y0 must be real .* complex128"):
        diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.1, jnp.ones(2) + 1j, stepsize_controller=control)


def test_steps_that_still_grow_are_not_called_stiff():
    model, data = tanh_network()
    traj = gflow.integrate(model, data, 100.0, solver=diffrax.Tsit5(), max_steps=6, throw=False)
    assert traj.status == "max_steps" and "tolerance limits" in traj.reason


def test_masks_and_weights_of_the_data_make_no_kink():
    x, y = jnp.linspace(-1.0, 1.0, 8), jnp.linspace(0.0, 1.0, 8)
    smooth = [
        lambda w: jnp.mean((jnp.tanh(w * x) - y) ** 2 * (1 + 3 * (y > 0.5))),
        lambda w: jnp.mean(jnp.where(x > 0, w * x, 0.0) ** 2),
        lambda w: jnp.sum(w * jnp.abs(x)) / jnp.maximum(jnp.sum(y), 1.0),
        lambda w: jnp.mean(jnp.logaddexp(0.0, -w * x)),
    ]
    assert not any(has_kinks(function, 1.0) for function in smooth)
    assert has_kinks(lambda w: jnp.mean(jnp.maximum(w * x, 0.0)), 1.0)


def test_steps_grow_back_after_a_refusal_and_are_then_free():
    control = gflow.solvers.Predictive(rtol=1e-3, atol=1e-6)
    _, state = control.init(None, 0.0, 1e9, jnp.ones(2), 1.0, None, None, 3)
    step, steps = jnp.asarray(1.0), []
    for error in [jnp.inf, *[1e-12] * 14]:
        ends = jnp.asarray(0.0), step
        _, start, end, _, state, _ = control.adapt_step_size(
            *ends, jnp.ones(2), jnp.ones(2), None, error * jnp.ones(2), 3, state
        )
        step = end - start
        steps.append(float(step))
    assert steps[0] == 0.5 and 0.5 < steps[1] < 0.8
    slow = [b / a for a, b in zip(steps[1:], steps[2:], strict=False) if a < 1]
    assert all(1 < ratio < 1.1 for ratio in slow) and steps[-1] > 100  # free from where it was refused
