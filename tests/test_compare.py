import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import Linear, dense_hessian, problem_of, tanh_network

import gflow


@pytest.mark.slow
def test_closed_form_on_a_quadratic():
    # L = ½(w − 1)²: flow 1 − e^{−t}, descent 1 − (1 − η)^k, sharpness 1
    model, data = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    both = gflow.compare(model, data, learning_rate=0.5, t_max=5.2, rtol=1e-9, atol=1e-12)
    k = np.arange(11)
    np.testing.assert_array_equal(both.step, k)
    np.testing.assert_allclose(both.flow.t, 0.5 * k, rtol=1e-14)
    np.testing.assert_array_equal(both.flow.t, both.descent.t)
    flow, descent = 1 - np.exp(-0.5 * k), 1 - 0.5**k
    np.testing.assert_allclose(both.distance[1:], np.abs(descent - flow)[1:] / flow[1:], rtol=1e-6)
    assert both.distance[0] == 0 and both.threshold == 4
    np.testing.assert_allclose(both.flow["sharpness"], 1, rtol=1e-9)
    assert both.crossing is None and both.onset is None
    assert "never" in repr(both)


def test_crossing_and_onset():
    # L = (ab − 1)²/2 has sharpness a² + b² at a minimum; descent from an unbalanced start is unstable
    class Product(Linear):
        def __call__(self, x):
            return self.w[0] * self.w[1] * x[0]

    model, data = Product(jnp.array([2.6, 0.3])), (np.ones((1, 1)), np.ones(1))
    rate = 0.32
    both = gflow.compare(model, data, learning_rate=rate, t_max=20.0)
    w = np.array([2.6, 0.3])
    losses, sharpness = [], []
    for _ in range(len(both.step)):
        r = w[0] * w[1] - 1
        losses.append(0.5 * r**2)
        off = 2 * w[0] * w[1] - 1
        sharpness.append(np.linalg.eigvalsh([[w[1] ** 2, off], [off, w[0] ** 2]])[-1])
        w = w - rate * r * w[::-1]
    np.testing.assert_allclose(both.descent.step_loss, losses, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(both.descent["sharpness"], sharpness, rtol=1e-6)
    crossing = int(np.flatnonzero(np.array(sharpness) > 2 / rate)[0])
    rises = np.flatnonzero(np.diff(losses) > 0) + 1
    assert both.crossing == crossing
    assert both.onset == rises[rises >= crossing][0]


@pytest.mark.slow
def test_another_optimiser_has_no_threshold_here():
    both = gflow.compare(
        *tanh_network(), learning_rate=0.1, t_max=2.0, optimizer=optax.sgd(0.1, momentum=0.9)
    )
    assert both.threshold is None and "threshold not known" in repr(both)
    for name in ("edge", "crossing", "onset"):
        with pytest.raises(ValueError, match="gflow.stability.Custom"):
            getattr(both, name)
    assert len(both.distance) == 21 and both.distance[-1] > 0.01


@pytest.mark.slow
def test_records_of_both_paths_and_sharpness():
    network = tanh_network()
    both = gflow.compare(
        *network,
        learning_rate=0.5,
        t_max=10.0,
        save_every=4,
        observe={"norm": lambda m, _: jnp.linalg.norm(m.layers[0].weight)},
    )
    np.testing.assert_array_equal(both.step, [0, 4, 8, 12, 16, 20])
    assert both.flow["norm"].shape == both.descent["norm"].shape == (6,)
    problem = problem_of(network)
    top = np.linalg.eigvalsh(dense_hessian(problem))[-1]
    np.testing.assert_allclose(both.flow["sharpness"][0], top, rtol=1e-6)
    alone = gflow.integrate(*network, 10.0, save_at=2)
    for a, b in zip(
        jax.tree.leaves(alone.model.layers), jax.tree.leaves(both.flow.model.layers), strict=True
    ):
        assert np.array_equal(a, b)


def test_a_horizon_of_single_precision():
    model, data = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    both = gflow.compare(model, data, learning_rate=np.float32(0.1), t_max=np.float32(0.5))
    assert both.step.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_diverging_descent_leaves_the_flow_whole():
    model, data = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    both = gflow.compare(model, data, learning_rate=2.5, t_max=500.0, throw=False)
    assert both.flow.ok and both.descent.status == "diverged"
    assert len(both.distance) == len(both.descent.t) < len(both.flow.t)
    assert both.crossing == 0 and both.onset == 1
    with pytest.raises(gflow.FlowError, match="diverged"):
        gflow.compare(model, data, learning_rate=2.5, t_max=500.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.slow
def test_digits_at_the_edge_of_stability(dtype):
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parents[1] / "examples" / "flow_vs_gd.py"
    spec = importlib.util.spec_from_file_location("flow_vs_gd", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    cast = lambda tree: jax.tree.map(lambda a: a.astype(dtype) if isinstance(a, jax.Array) else a, tree)
    model, data = cast(example.network((64, 24, 24, 10))), cast(example.digits(300))
    both = gflow.compare(model, data, learning_rate=0.4, t_max=200.0)
    assert both.flow["sharpness"].dtype == dtype and both.flow["sharpness"][-1] > both.threshold
    assert abs(both.crossing - 114) <= 5
    assert 150 <= both.onset <= 270
    after = both.step >= both.onset
    assert 1.0 <= np.mean(both.descent["sharpness"][after]) / both.threshold <= 1.05
    # relative to a displacement that is still small, the first steps differ by about λη/2
    assert np.max(both.distance[(both.step >= 50) & ~after]) < 0.07


def test_distances_are_taken_at_equal_times():
    # dw/dt = 1 − w from 0: the flow is at 1 − e^{−t}, descent at 1 − (1 − η)^k
    model, data = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    both = gflow.compare(model, data, learning_rate=2.5, t_max=500.0, save_every=7, throw=False)
    assert both.descent.status == "diverged" and both.step[-1] % 7  # recorded where it ended
    steps = np.arange(len(both.distance)) * 7
    assert 1 < len(steps) < len(both.step) and np.array_equal(both.step[: len(steps)], steps)
    exact, there = 1 - (-1.5) ** steps[1:], 1 - np.exp(-2.5 * steps[1:])
    np.testing.assert_allclose(both.distance[1:], np.abs(exact - there) / there, rtol=1e-3)
