"""What is recorded of the steps of a descent: preconditioned sharpness, oscillation, midpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from systems import Linear, dense_hessian, problem_of, tanh_network

import gflow
from gflow import observe, stability

NETWORK = tanh_network(sizes=(3, 5, 2), examples=12)


def by_hand(optimizer, second_moment, steps):
    """θ_0 … θ_steps and the diagonal P of each step, by numpy alone but for the gradient."""
    problem = problem_of(NETWORK)
    flat, unravel = ravel_pytree(problem.params)
    gradient = jax.jit(lambda w: ravel_pytree(problem.gradient(unravel(w)))[0])
    w, m, v, path, scales = np.asarray(flat), 0.0, 0.0, [np.asarray(flat)], []
    for k in range(1, steps + 1):
        g = np.asarray(gradient(w))
        v = second_moment * v + (1 - second_moment) * g**2
        if isinstance(optimizer, stability.Adam):
            m = optimizer.b1 * m + (1 - optimizer.b1) * g
            scale = (1 - optimizer.b1**k) * (np.sqrt(v / (1 - optimizer.b2**k)) + optimizer.eps)
            w = w - optimizer.learning_rate * m / scale
        else:
            scale = np.sqrt(v + optimizer.eps)
            w = w - optimizer.learning_rate * g / scale
        path.append(w)
        scales.append(scale)
    return problem, unravel, path, scales


@pytest.mark.parametrize(
    "optimizer, second_moment",
    [(stability.Adam(3e-2, 0.9, 0.99), 0.99), (stability.RMSProp(1e-2, 0.9, 1e-6), 0.9)],
)
@pytest.mark.slow
def test_against_dense_matrices(optimizer, second_moment):
    # an eigenvector is known to the square root of what its eigenvalue is
    seen = [observe.PreconditionedSharpness(rtol=1e-9), observe.Oscillation(rtol=1e-12)]
    traj = gflow.descend(*NETWORK, optimizer, 6, save_every=2, observe=seen)
    np.testing.assert_array_equal(traj.step, [0, 2, 4, 6])
    problem, unravel, path, scales = by_hand(optimizer, second_moment, 7)
    last = None
    for i, k in enumerate(traj.step):
        root = np.sqrt(scales[k])
        scaled = lambda w: dense_hessian(problem, unravel(jnp.asarray(w))) / np.outer(root, root)  # noqa: B023
        top = np.linalg.eigvalsh(scaled(path[k]))[-1]
        np.testing.assert_allclose(traj["preconditioned_sharpness"][i], top, rtol=1e-7)
        # the error of the eigenvalue, residual² / gap, is what rtol bounds
        assert traj["preconditioned_sharpness_residual"][i] < np.sqrt(1e-9) * top
        midpoint = (path[k] + path[k + 1]) / 2
        values, vectors = np.linalg.eigh(scaled(midpoint))
        v = vectors[:, -1] * (1 if last is None or vectors[:, -1] @ last > 0 else -1)
        last = v
        np.testing.assert_allclose(traj["midpoint_sharpness"][i], values[-1], rtol=1e-7)
        loss = float(problem.value(unravel(jnp.asarray(midpoint))))
        np.testing.assert_allclose(traj["midpoint_loss"][i], loss, rtol=1e-9)
        amplitude = v @ (root * (path[k + 1] - path[k])) / 2
        sign = np.sign(traj["oscillation"][0]) if i == 0 else sign  # of the first vector: free
        last = v if i else v * np.sign(amplitude) * sign
        expected = amplitude if i else abs(amplitude) * sign
        np.testing.assert_allclose(traj["oscillation"][i], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_an_oscillation_on_a_quadratic_in_closed_form():
    # L = ½(4a² + b²), η = 0.45: a_k = (1 − 4η)^k alternates, b_k = (1 − η)^k doesn't
    data = (np.diag([np.sqrt(8.0), np.sqrt(2.0)]), np.zeros(2))
    rate, k = 0.45, np.arange(9)
    traj = gflow.descend(
        Linear(jnp.ones(2)), data, rate, 8, save_every=1, observe=[observe.Oscillation(), observe.Sharpness()]
    )
    a, b = (1 - 4 * rate) ** k, (1 - rate) ** k
    amplitude = a * (-4 * rate) / 2
    expected = amplitude * np.sign(amplitude[0] * traj["oscillation"][0])
    np.testing.assert_allclose(traj["oscillation"], expected, atol=1e-6)
    np.testing.assert_allclose(traj["midpoint_sharpness"], 4, rtol=1e-6)
    middle = 2 * (a * (1 - 2 * rate)) ** 2 + 0.5 * (b * (1 - rate / 2)) ** 2
    np.testing.assert_allclose(traj["midpoint_loss"], middle, rtol=1e-12)
    # seen from a threshold that it exceeds, with the loss rising nowhere
    seen = stability.edge(traj, stability.Custom(optax.sgd(rate), 3.0))
    assert seen.crossing == 0 and seen.onset is None and np.isnan(seen.alternation)


def test_statistics_of_a_descent_that_oscillates():
    # L = ½a², η = 2.2: a_k = (−1.2)^k, L rises at every step
    data, rate = (np.ones((1, 1)), np.zeros(1)), 2.2
    with pytest.warns(UserWarning, match="above its start"):
        traj = gflow.descend(
            Linear(jnp.ones(1)),
            data,
            rate,
            6,
            save_every=1,
            observe=[observe.Oscillation(), observe.Sharpness()],
        )
    seen = stability.edge(traj, rate)
    assert (seen.crossing, seen.onset, seen.nonmonotone, seen.alternation) == (0, 1, 1.0, 1.0)
    np.testing.assert_allclose([seen.mean, seen.midpoint_mean], 1.1, rtol=1e-6)
    np.testing.assert_allclose(seen.midpoint_loss, (1 - rate / 2) ** 2, rtol=1e-9)
    amplitudes = 1.2 ** np.arange(1, 7) * rate / 2
    np.testing.assert_allclose(seen.amplitude, np.sqrt(np.mean(amplitudes**2)), rtol=1e-6)


@pytest.mark.slow
def test_they_survive_single_precision_and_leave_the_path_alone():
    model, data = tanh_network(sizes=(3, 5, 2), examples=12, dtype=np.float32)
    adam = stability.Adam(1e-2)
    seen = [observe.PreconditionedSharpness(k=2), observe.Oscillation()]
    traj = gflow.descend(model, data, adam, 5, save_every=1, observe=seen)
    assert traj["preconditioned_sharpness"].dtype == traj["oscillation"].dtype == np.float32
    assert traj["preconditioned_sharpness"].shape == (6, 2)
    assert np.all(np.diff(traj["preconditioned_sharpness"], axis=1) <= 0)
    plain = gflow.descend(model, data, adam, 5)
    for a, b in zip(jax.tree.leaves(traj.model), jax.tree.leaves(plain.model), strict=True):
        assert not isinstance(a, jax.Array) or np.array_equal(a, b)


@pytest.mark.slow
def test_members_of_an_ensemble_and_a_file(tmp_path):
    members = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]) if isinstance(a, jax.Array) else a, NETWORK[0])
    seen = [observe.PreconditionedSharpness(), observe.Oscillation()]
    adam = stability.Adam(1e-2)
    both = gflow.descend(members, NETWORK[1], adam, 4, save_every=2, observe=seen, ensemble=True)
    one = gflow.descend(*NETWORK, adam, 4, save_every=2, observe=seen)
    for name in ("preconditioned_sharpness", "midpoint_sharpness", "midpoint_loss"):
        np.testing.assert_allclose(both[name][0], one[name], rtol=1e-5)
    np.testing.assert_array_equal(both.step, [0, 2, 4])
    with pytest.raises(ValueError, match="one descent, but is that of an ensemble"):
        stability.edge(both, adam)
    one.save(tmp_path / "run.npz")
    np.testing.assert_array_equal(gflow.load(tmp_path / "run.npz", NETWORK[0]).step, one.step)


@pytest.mark.parametrize("optimizer", [0.1, optax.adam(1e-3), stability.Polyak(0.1, 0.9)])
def test_no_preconditioner(optimizer):
    with pytest.raises(ValueError, match="no preconditioner that gflow knows; descend with gflow.stability"):
        gflow.descend(*NETWORK, optimizer, 2, observe=[observe.PreconditionedSharpness()])


def test_where_there_are_no_steps():
    with pytest.raises(ValueError, match="'oscillation' of the steps.*gflow.descend"):
        gflow.integrate(*NETWORK, 1.0, observe=[observe.Oscillation()])
    stop = gflow.stop.Crosses("oscillation", 1.0)
    with pytest.raises(ValueError, match="can't be the quantity of a stop condition"):
        gflow.descend(*NETWORK, 0.1, 2, observe=[observe.Oscillation()], stop=stop)
    with pytest.raises(ValueError, match="path must be .* is that of a flow"):
        stability.edge(gflow.integrate(*NETWORK, 0.1), 0.1)
    for cls in (observe.PreconditionedSharpness, observe.Oscillation):
        with pytest.raises(ValueError, match="rtol must lie between 0 and 1"):
            cls(rtol=2.0)


@pytest.mark.slow
def test_a_comparison_records_steps_of_its_descent_alone():
    adam = stability.Adam(optax.linear_schedule(1e-2, 2e-2, 4))
    both = gflow.compare(
        *NETWORK, learning_rate=1e-2, t_max=0.04, optimizer=adam, observe=[observe.Oscillation()]
    )
    assert {"sharpness", "preconditioned_sharpness", "oscillation"} <= set(both.descent.records)
    assert "sharpness" in both.flow.records and "oscillation" not in both.flow.records
    np.testing.assert_allclose(both.threshold, 38 / (1e-2 * (1 + np.arange(5) / 4)), rtol=1e-6)
    assert both.quantity == "preconditioned_sharpness"
    above = np.flatnonzero(both.descent["preconditioned_sharpness"] > both.threshold)
    assert len(above) and both.crossing == above[0]
    assert "1900 to 3800 (preconditioned)" in repr(both)
