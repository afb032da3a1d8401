import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import Linear, tanh_network

import gflow
from gflow import stability
from gflow.stability._edge import as_optimizer, statistics


def radius(transformation, curvature):
    """Spectral radius of one step of optax on L = ½hθ², state and θ together, by numpy."""
    theta = jnp.zeros(1)
    flat, unravel = jax.flatten_util.ravel_pytree((theta, transformation.init(theta)))

    def step(z):
        theta, state = unravel(z)
        update, state = transformation.update(curvature * theta, state, theta)
        return jax.flatten_util.ravel_pytree((theta + update, state))[0]

    return np.abs(np.linalg.eigvals(np.asarray(jax.jacobian(step)(flat)))).max()


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(
    "make",
    [
        lambda w: stability.GradientDescent(0.2, w),
        lambda w: stability.Polyak(0.2, 0.9, w),
        lambda w: stability.Nesterov(0.2, 0.8, w),
    ],
)
def test_linear_thresholds_are_where_the_spectral_radius_passes_one(make, decay):
    optimizer = make(decay)
    limit = optimizer.threshold()
    assert radius(optimizer.transformation(), 0.999 * limit) < 1
    assert radius(optimizer.transformation(), 1.001 * limit) > 1


@pytest.mark.parametrize("b1, w", [(0.0, 0.0), (0.9, 0.0), (0.9, 0.5), (0.5, 2.0)])
def test_adam_with_its_preconditioner_held(b1, w):
    rate = 0.1
    limit = stability.Adam(rate, b1=b1, weight_decay=w).threshold()
    for factor, stable in ((0.999, True), (1.001, False)):
        h = factor * limit
        matrix = [[1 - rate * w - rate * (1 - b1) * h, -rate * b1], [(1 - b1) * h, b1]]
        assert (np.abs(np.linalg.eigvals(matrix)).max() < 1) == stable
    assert stability.RMSProp(rate).threshold() == 2 / rate


@pytest.mark.parametrize("optimizer", [stability.RMSProp(0.1), stability.Adam(0.1)])
def test_the_preconditioner_is_what_optax_divides_by(optimizer):
    # the first update of either is (1 − β₁) g / P, times η
    g, theta = jnp.array([0.3, -2.0, 1e-3]), jnp.zeros(3)
    transformation = optimizer.transformation()
    update, state = transformation.update(g, transformation.init(theta), theta)
    fresh = 1 - getattr(optimizer, "b1", 0.0)
    np.testing.assert_allclose(update, -0.1 * fresh * g / optimizer.preconditioner(state), rtol=1e-12)


def test_a_schedule_gives_a_threshold_for_each_step():
    schedule = optax.linear_schedule(0.1, 0.2, 10)
    np.testing.assert_allclose(stability.GradientDescent(schedule).threshold(np.array([0, 10])), [20, 10])
    assert stability.Custom(optax.sgd(0.1), 7.0).threshold(3) == 7.0


def test_statistics_of_synthetic_records():
    step = np.arange(0, 10, 2)
    sharpness = np.array([1.0, np.exp(1), np.exp(2), 4.4, 3.6])
    loss = np.array([9.0, 8, 7, 6, 5, 6, 4, 5, 3, 2])
    seen = statistics(step, {"loss": loss[step]}, loss, sharpness, 4.0)
    assert (seen.crossing, seen.onset) == (4, 5)
    np.testing.assert_allclose([seen.mean, seen.spread], [1.0, 0.1])
    np.testing.assert_allclose([seen.nonmonotone, seen.sharpening], [0.4, 0.5])
    never = statistics(step, {"loss": loss[step]}, loss, sharpness, 100.0)
    assert never.crossing is None and never.onset is None and np.isnan(never.mean)
    # of records at single steps, alternation is seen only where two of them are consecutive
    records = {"loss": loss, "oscillation": np.array([1.0, 1, 1, 1, 1, 2, -2, 2, 2, -2])}
    seen = statistics(np.arange(10), records, loss, np.full(10, 5.0), 4.0)
    assert (seen.onset, seen.alternation, seen.amplitude) == (5, 0.75, 2.0)
    assert np.isnan(seen.midpoint_mean) and np.isnan(seen.midpoint_loss)
    apart = {"loss": loss[step], "oscillation": records["oscillation"][step]}
    assert np.isnan(statistics(step, apart, loss, np.full(5, 5.0), 4.0).alternation)


def test_a_threshold_for_each_record():
    step, loss = np.arange(4), np.array([4.0, 3.0, 3.5, 2.0])
    sharpness, threshold = np.array([1.0, 2.0, 3.0, 3.0]), np.array([2.0, 1.0, 3.0, 1.5])
    seen = statistics(step, {"loss": loss}, loss, np.stack([sharpness, sharpness / 2], 1), threshold)
    assert (seen.crossing, seen.onset, seen.mean) == (1, 2, 1.5)


def test_statistics_before_the_sharpness_is_positive_and_without_a_rise():
    sharpness, loss = np.array([-1.0, 1.0, np.exp(1), 9.0]), np.array([4.0, 3.0, 2.0, 1.0])
    seen = statistics(np.arange(4), {"loss": loss}, loss, sharpness, 5.0)
    assert (seen.crossing, seen.onset) == (3, None)
    slope = np.polyfit([1, 2, 3], [0, 1, np.log(9)], 1)[0]
    np.testing.assert_allclose(seen.sharpening, slope, rtol=1e-12)


@pytest.mark.slow
def test_a_descent_takes_them():
    network = tanh_network()
    for ours, theirs in (
        (stability.Polyak(0.1, 0.9), optax.sgd(0.1, 0.9)),
        (stability.Adam(1e-2), optax.adam(1e-2)),
    ):
        a, b = (gflow.descend(*network, each, 20).step_loss for each in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.slow
def test_a_comparison_knows_their_threshold():
    network = tanh_network()
    both = gflow.compare(*network, learning_rate=1.0, t_max=3.0, optimizer=stability.Polyak(0.1, 0.9))
    assert both.threshold == pytest.approx(38) and both.descent.stats["solver"] == "Polyak"
    adam = gflow.compare(*network, learning_rate=1.0, t_max=3.0, optimizer=stability.Adam(1e-2))
    assert adam.threshold == pytest.approx(3800) and adam.quantity == "preconditioned_sharpness"
    plateau = stability.GradientDescent(optax.piecewise_constant_schedule(0.1, {2: 0.5}))
    plateau = gflow.compare(*network, learning_rate=1.0, t_max=3.0, optimizer=plateau)
    np.testing.assert_allclose(plateau.threshold, [20, 20, 40, 40], rtol=1e-6)


def test_a_step_with_momentum_is_worth_more_time():
    """The heavy ball follows the flow, within O(η), on the clock t = η k / (1 − β) and on no other."""
    network = tanh_network()
    for optimizer in (stability.Polyak(1e-3, 0.9), stability.Nesterov(1e-3, 0.9)):
        both = gflow.compare(*network, learning_rate=1e-2, t_max=4.0, optimizer=optimizer)
        assert both.distance[-1] < 0.05
        assert gflow.descend(*network, optimizer, 400).t[-1] == pytest.approx(4.0)
        with pytest.raises(ValueError, match="Polyak|Nesterov.*worth, 0.01 .* but 0.001 came"):
            gflow.compare(*network, learning_rate=1e-3, t_max=4.0, optimizer=optimizer)


RATES = [0.0, -0.1, np.nan, np.inf, "0.1", None, True]
SHARES = [-0.1, 1.0, np.nan, "0.9", None]


@pytest.mark.parametrize(
    "message, make, values",
    [
        ("learning_rate must be a positive finite", stability.GradientDescent, RATES),
        ("learning_rate must be", lambda x: stability.Polyak(x, 0.9), RATES),
        ("learning_rate must be", lambda x: stability.Nesterov(x, 0.9), RATES),
        ("learning_rate must be", stability.RMSProp, RATES),
        ("learning_rate must be.*optax schedule", stability.Adam, RATES),
        (r"momentum must be a number in \[0, 1\)", lambda x: stability.Polyak(0.1, x), SHARES),
        ("momentum must be", lambda x: stability.Nesterov(0.1, x), SHARES),
        ("decay must be", lambda x: stability.RMSProp(0.1, x), SHARES),
        ("b1 must be", lambda x: stability.Adam(0.1, x), SHARES),
        ("b2 must be", lambda x: stability.Adam(0.1, b2=x), SHARES),
        ("eps must be a finite number of at least 0", lambda x: stability.Adam(0.1, eps=x), [-1e-8, np.nan]),
        ("eps must be", lambda x: stability.RMSProp(0.1, eps=x), [-1e-8, np.inf]),
        ("weight_decay must be", lambda x: stability.GradientDescent(0.1, x), [-1e-8, np.inf]),
        ("weight_decay must be", lambda x: stability.Adam(0.1, weight_decay=x), [-1.0, "0"]),
        ("limit must be a positive finite", lambda x: stability.Custom(optax.sgd(0.1), x), RATES),
        ("optimizer must be an optax", lambda x: stability.Custom(x, 1.0), [0.1, None]),
        ("optimizer must be a learning rate or", as_optimizer, [optax.sgd(0.1), "sgd"]),
    ],
)
def test_bad_numbers_are_refused_where_they_are_given(message, make, values):
    for value in values:
        with pytest.raises(ValueError, match=message) as caught:
            make(value)
        assert "\n" not in str(caught.value)


def test_numbers_without_a_value_yet_are_taken():
    slope = jax.grad(lambda rate: stability.GradientDescent(rate).threshold())(0.5)
    np.testing.assert_allclose(slope, -8)


def test_gradient_descent_has_the_clock_of_its_rate():
    model, data = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    traj = gflow.descend(model, data, stability.GradientDescent(0.2), 10)
    assert traj.t[-1] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="learning_rate must be the time that a step"):
        gflow.descend(model, data, stability.GradientDescent(0.2), 10, learning_rate=0.7)
    for other in (0.2, stability.GradientDescent(0.2)):
        with pytest.raises(ValueError, match="learning_rate must be the time that a step"):
            gflow.compare(model, data, learning_rate=0.05, t_max=1.0, optimizer=other)
    both = gflow.compare(model, data, learning_rate=0.2, t_max=1.0, optimizer=0.2)
    assert both.threshold == 10 and both.crossing is None


def test_the_edge_of_mini_batches_is_refused():
    x = np.random.default_rng(0).normal(size=(20, 3))
    arguments = Linear(jnp.zeros(3)), (x, x.sum(1)), 0.2, 30
    options = dict(observe=[gflow.observe.Sharpness()], save_every=3)
    with pytest.raises(ValueError, match="mini-batches"):
        stability.edge(gflow.descend(*arguments, minibatch=2, key=jax.random.key(0), **options), 0.2)
    assert stability.edge(gflow.descend(*arguments, **options), 0.2).crossing is None
