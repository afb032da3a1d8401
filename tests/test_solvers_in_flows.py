"""The solvers made for gradient flow, inside `gflow.integrate`."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import tanh_network

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
    traj = gflow.integrate(*tanh_network(), 40.0, solver=solver, rtol=rtol, save_at=2)
    error = np.linalg.norm(parameters(traj.model) - reference) / np.linalg.norm(reference)
    assert 0.01 * rtol < error < 3 * rtol


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_gradients_are_counted_exactly(solver):
    counted = [0]

    @jax.custom_vjp
    def counting(value):
        return value

    def forward(value):
        return value, None

    def backward(_, cotangent):
        jax.debug.callback(lambda: counted.__setitem__(0, counted[0] + 1))
        return (cotangent,)

    counting.defvjp(forward, backward)
    squared = gflow.losses.Squared()
    loss = lambda model, data: counting(squared(model, data))
    traj = gflow.integrate(*tanh_network(), 20.0, loss=loss, solver=solver, save_at=5)
    jax.effects_barrier()
    assert traj.stats["gradients"] == counted[0]
    assert traj.stats["rejected"] >= 0 and traj.stats["solver"] == type(solver).__name__


@pytest.mark.parametrize("solver", SOLVERS[1:], ids=ids[1:])
def test_what_is_recorded_does_not_change_the_path(solver):
    few, many = (gflow.integrate(*tanh_network(), 10.0, solver=solver, save_at=count) for count in (2, 101))
    assert np.array_equal(parameters(few.model), parameters(many.model))


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


def test_the_choice_is_told_and_can_be_overruled():
    network = tanh_network(sizes=(3, 4, 1))
    chosen = {
        rtol: gflow.integrate(*network, 0.1, rtol=rtol, save_at=2).stats["solver"]
        for rtol in (1e-3, 1e-5, 1e-8)
    }
    assert chosen == {1e-3: "EXPRB32", 1e-5: "RKC3", 1e-8: "Tsit5"}
    named = gflow.integrate(*network, 0.1, solver=diffrax.Heun(), save_at=2)
    assert named.stats["solver"] == "Heun" and named.stats["solver_reason"] == "named by the user"
    # a basis of 40 vectors of a network this large would not be small beside it
    solver, reason = gflow.solvers.choose(1e-3, 10**8, np.dtype("float32"), symmetric=True)
    assert type(solver) is gflow.solvers.RKC2 and "2 GiB" in reason
    assert type(gflow.solvers.choose(1e-3, 9, np.dtype("float32"), symmetric=False)[0]) is diffrax.Tsit5
