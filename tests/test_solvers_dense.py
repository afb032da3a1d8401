"""The exponential solver with a dense Jacobian: against scipy and closed forms."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from systems import counting, tanh_network

import gflow
from gflow.solvers import EXPRB43
from gflow.solvers._phi import general_phi
from gflow.solvers._quintic import WITHIN, QuinticInterpolation, with_bend


def solve(field, y0, t1, solver, dt0=None, rtol=1e-6):
    controller = diffrax.PIDController(rtol=rtol, atol=rtol * 1e-3)
    if dt0 is not None:
        controller = diffrax.ConstantStepSize()
    term = diffrax.ODETerm(lambda t, y, args: field(t, y))
    return diffrax.diffeqsolve(
        term, solver, 0.0, t1, dt0 or 0.01, y0, stepsize_controller=controller, max_steps=100_000
    )


@pytest.mark.parametrize("size, double", [(1e-3, True), (1.0, True), (300.0, True), (1.0, False)])
def test_phi_of_matrices_that_are_not_symmetric(size, double):
    random = np.random.default_rng(0)
    a = random.normal(size=(5, 5))
    a = size * (a - 4 * np.eye(5))
    # phi_k is a block of the exponential of a matrix with ones beside it
    big = np.zeros((25, 25))
    big[:5, :5] = a
    for k in range(4):
        big[5 * k : 5 * k + 5, 5 * k + 5 : 5 * k + 10] = np.eye(5)
    exact = scipy.linalg.expm(big)[:5]
    with jax.enable_x64(double):
        found = np.asarray(general_phi(jnp.asarray(a)))
    for k, phi in enumerate(found, start=1):
        block = exact[:, 5 * k : 5 * k + 5]
        np.testing.assert_allclose(phi, block, atol=(1e-11 if double else 1e-5) * np.abs(block).max())


@pytest.mark.parametrize("symmetric", [True, False])
def test_linear_problems_are_solved_exactly(symmetric):
    random = np.random.default_rng(1)
    a = random.normal(size=(6, 6))
    a = -100 * (a @ a.T) + (0 if symmetric else 1) * random.normal(size=(6, 6))
    start = random.normal(size=6)
    found = solve(lambda t, y: jnp.asarray(a) @ y, jnp.asarray(start), 1.0, EXPRB43(symmetric), dt0=0.5)
    np.testing.assert_allclose(found.ys[0], scipy.linalg.expm(a) @ start, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "adjoint, transform",
    [(diffrax.RecursiveCheckpointAdjoint(), jax.grad), (diffrax.ForwardMode(), jax.jacfwd)],
    ids=["reverse", "forward"],
)
def test_derivatives(symmetric, adjoint, transform):
    turn = np.array([[0.0, 1.0], [1.0 if symmetric else -1.0, 0.0]])
    matrix = lambda k: turn - k * np.diag([1.0, 40.0])

    def final(k):
        field = lambda t, y, args: (turn - k * jnp.diag(jnp.array([1.0, 40.0]))) @ y
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(field), EXPRB43(symmetric), 0.0, 1.0, 0.01, jnp.ones(2), adjoint=adjoint,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9), max_steps=4096,
        )  # fmt: skip
        return found.ys[0, 0]

    places = np.array([0.7, 1.5])
    exact = [
        (scipy.linalg.expm_frechet(matrix(k), -np.diag([1.0, 40.0]), compute_expm=False) @ np.ones(2))[0]
        for k in places
    ]
    np.testing.assert_allclose(jax.vmap(transform(final))(jnp.asarray(places)), exact, rtol=1e-6)


@pytest.mark.slow
def test_it_has_order_four_also_where_the_field_depends_on_time():
    # y' = cos(t) y² and z' = -z + y, with y = 1 / (2 - sin t)
    field = lambda t, y: {"y": jnp.cos(t) * y["y"] ** 2, "z": jnp.array([2 * jnp.cos(y["y"])])}
    start = {"y": jnp.array(0.5), "z": jnp.zeros(1)}
    errors = []
    for dt in (0.2, 0.1, 0.05):
        found = solve(field, start, 1.0, EXPRB43(), dt0=dt)
        errors.append(abs(float(found.ys["y"][0]) - 1 / (2 - np.sin(1.0))))
    orders = np.log2(np.array(errors)[:-1] / errors[1:])
    assert np.all(orders > 3.6) and errors[-1] < 1e-6


@pytest.mark.slow
def test_gradients_and_products_are_counted():
    loss, counted = counting(gflow.losses.Squared())
    network = tanh_network(sizes=(2, 3, 1))
    traj = gflow.integrate(*network, 20.0, loss=loss, solver=EXPRB43(symmetric=True), save_at=3)
    jax.effects_barrier()
    size = sum(leaf.size for leaf in jax.tree.leaves(network[0]) if hasattr(leaf, "size"))
    assert traj.stats["hvps"] == size * traj.stats["steps"]
    # the products make gradients as well, which the counter sees as one for each step: they are batched
    assert traj.stats["gradients"] <= counted[0] <= traj.stats["gradients"] + 2 * traj.stats["steps"]
    exact = gflow.integrate(*network, 20.0, solver=diffrax.Dopri8(), rtol=1e-11, atol=1e-13, save_at=2)
    assert traj.loss[-1] == pytest.approx(exact.loss[-1], rel=1e-3)


def test_dense_output_is_the_quintic_through_six_values():
    random = np.random.default_rng(0)
    nodes = np.array([0.0, *WITHIN, 1.0])
    values = random.normal(size=(6, 3))
    fitted = np.stack([np.polyfit(nodes, column, 5) for column in values.T])
    output = QuinticInterpolation(
        t0=jnp.array(2.0), t1=jnp.array(2.5), y0=jnp.asarray(values[0]), y1=jnp.asarray(values[-1]),
        within=jnp.asarray(values[1:-1] - values[0]),
    )  # fmt: skip
    for share in (0.0, 0.03, 0.4, 0.9, 1.0):
        exact = [np.polyval(row, share) for row in fitted]
        np.testing.assert_allclose(output.evaluate(2.0 + share / 2), exact, atol=1e-12)
    increment = [np.polyval(row, 0.8) - np.polyval(row, 0.2) for row in fitted]
    np.testing.assert_allclose(output.evaluate(2.1, 2.4), increment, atol=1e-12)


def test_what_a_quartic_misses_counts_as_error():
    random = np.random.default_rng(0)
    nodes = np.array([0.0, *WITHIN, 1.0])
    quartic = np.polyval(random.normal(size=5), nodes)
    decay = np.exp(-15 * nodes)
    missed = decay[1] - np.polyval(np.polyfit(np.delete(nodes, 1), np.delete(decay, 1), 4), nodes[1])
    values = np.stack([quartic, decay, decay], axis=1)
    found = with_bend(jnp.array([1e-6, 1e-6, -2.0]), jnp.asarray(values[1:] - values[0]))
    np.testing.assert_allclose(found, [1e-6, missed, -2.0], rtol=1e-9)


def test_a_promise_of_symmetry_that_is_broken_costs_steps_and_not_the_answer():
    turning = np.array([[-0.1, -10.0], [10.0, -0.2]])
    start = jnp.array([1.0, 0.5])
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: jnp.asarray(turning) @ y), EXPRB43(symmetric=True), 0.0, 1.0, None,
        start, stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-7), max_steps=50_000,
    )  # fmt: skip
    np.testing.assert_allclose(found.ys[0], scipy.linalg.expm(turning) @ start, atol=2e-3)
