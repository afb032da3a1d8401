"""The solvers made for gradient flow, inside `gflow.integrate`."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import counting, tanh_network

import gflow

SOLVERS = [gflow.solvers.RKC2(), gflow.solvers.RKC3(), gflow.solvers.EXPRB32()]
ids = [type(solver).__name__ for solver in SOLVERS]


def parameters(model):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))])


@pytest.fixture(scope="module")
def reference():
    network = tanh_network()
    return parameters(
        gflow.integrate(*network, 40.0, solver=diffrax.Dopri8(), rtol=1e-11, atol=1e-13, save_at=2).model
    )


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
@pytest.mark.parametrize("rtol", [1e-3, 1e-4])
def test_delivers_the_error_that_was_asked_for(solver, rtol, reference):
    traj = gflow.integrate(*tanh_network(), 40.0, solver=solver, rtol=rtol, atol=0.1 * rtol, save_at=2)
    error = np.linalg.norm(parameters(traj.model) - reference) / np.linalg.norm(reference)
    assert 0.01 * rtol < error < 3 * rtol


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_gradients_are_counted_exactly(solver):
    loss, counted = counting(gflow.losses.Squared())
    traj = gflow.integrate(*tanh_network(), 20.0, loss=loss, solver=solver, save_at=5)
    jax.effects_barrier()
    assert traj.stats["gradients"] == counted[0]
    assert traj.stats["rejected"] >= 0 and traj.stats["solver"] == type(solver).__name__


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS[1:], ids=ids[1:])
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


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_a_gradient_that_turns_nan_is_told_from_stiffness(solver):
    # w' = 2 - w from 1 reaches 1.5, where the root ends, at t = ln 2
    loss = lambda model, data: 0.5 * jnp.sum((model["w"] - 2) ** 2) + 0 * jnp.sum(jnp.sqrt(1.5 - model["w"]))
    traj = gflow.integrate({"w": jnp.ones(600)}, None, 5.0, loss=loss, solver=solver, throw=False)
    assert traj.status == "nonfinite" and traj.stats["steps"] < 200
    np.testing.assert_allclose(traj.t[-1], np.log(2), rtol=1e-3)
    assert np.all(np.isfinite(traj.loss)) and np.all(np.asarray(traj.model["w"]) <= 1.5)


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_an_endless_horizon_from_rest(solver):
    # nothing moves, so that neither the speed nor the horizon says how long the first step may be
    loss = lambda model, data: jnp.sum(model["w"] ** 2)
    never = gflow.stop.LossBelow(-1.0)
    kwargs = dict(loss=loss, solver=solver, save_at=[5.0], stop=never, max_steps=200, throw=False)
    traj = gflow.integrate({"w": jnp.zeros(3)}, None, np.inf, **kwargs)
    assert traj.t[0] == 5.0 and traj.loss[0] == 0.0 and traj.status in ("max_steps", "success")


def test_the_choice_is_told_and_can_be_overruled():
    network = tanh_network(sizes=(3, 4, 1))
    small = gflow.integrate(*network, 0.1, save_at=2)
    assert small.stats["solver"] == "Tsit5" and "small" in small.stats["solver_reason"]
    large = gflow.integrate(*tanh_network(sizes=(3, 200, 1)), 0.1, save_at=2)
    assert large.stats["solver"] == "RKC3" and "stiffness" in large.stats["solver_reason"]
    named = gflow.integrate(*network, 0.1, solver=diffrax.Heun(), save_at=2)
    assert named.stats["solver"] == "Heun" and named.stats["solver_reason"] == "named by the user"
    problem = gflow.Problem(*tanh_network(sizes=(3, 200, 1)))
    choose = gflow.solvers.choose
    for rtol, symmetric in ((1e-7, True), (1e-3, False)):
        assert type(choose(problem, rtol, symmetric=symmetric).solver) is diffrax.Tsit5
    assert type(choose(problem, 1e-3, symmetric=True).solver) is gflow.solvers.RKC3


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


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_small_parameters_are_resolved_relative_to_themselves(solver):
    # sigma = w², each from 1e-6 on its own: sigma' = sigma (target - sigma), learned one after the other
    target, start = np.array([4.0, 3.0, 2.0, 1.0]), 1e-12
    horizon = 1.2 * np.log(1 / start) / 2
    exact = target / (1 + (target / start - 1) * np.exp(-target * horizon))
    loss = lambda model, data: jnp.sum((model["w"] ** 2 - target) ** 2) / 8
    kwargs = dict(loss=loss, solver=solver, rtol=1e-4, atol=1e-12, save_at=2)
    traj = gflow.integrate({"w": jnp.full(4, 1e-6)}, None, horizon, **kwargs)
    np.testing.assert_allclose(traj.model["w"] ** 2, exact, rtol=1e-2)
