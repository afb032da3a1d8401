import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import Linear, tanh_network

import gflow


def hand_written(network, optimizer, steps):
    """The loop that users write, with its own squared error."""
    model, data = network
    params, static = eqx.partition(model, eqx.is_inexact_array)
    state = optimizer.init(params)
    losses = []
    x, y = data

    def loss(p):
        return 0.5 * jnp.sum((jax.vmap(eqx.combine(p, static))(x) - y) ** 2) / len(x)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(value)
    return params, np.asarray(losses)


def assert_same(model, params, atol=1e-12):
    ours = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    for a, b in zip(ours, jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "optimizer",
    [
        0.3,
        optax.sgd(0.3),
        optax.sgd(0.1, momentum=0.9),
        optax.adam(1e-2),
        optax.rmsprop(1e-3),
        optax.adamw(optax.cosine_decay_schedule(1e-2, 40)),
    ],
)
def test_equals_a_hand_written_loop(optimizer):
    network = tanh_network()
    traj = gflow.descend(*network, optimizer, 40)
    theirs = optax.sgd(optimizer) if isinstance(optimizer, float) else optimizer
    params, losses = hand_written(network, theirs, 40)
    assert_same(traj.model, params)
    np.testing.assert_allclose(traj.step_loss[:-1], losses, rtol=1e-12)
    np.testing.assert_allclose(traj.loss[:-1], losses, rtol=1e-12)
    assert len(traj.step_loss) == 41 and traj.step_loss[-1] == traj.loss[-1]


def test_closed_form_on_a_quadratic():
    # L = ½(w − 1)², so that w_k = 1 − (1 − η)^k
    model, data = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    traj = gflow.descend(
        model, data, 0.3, 50, save_every=7, observe={"w": lambda m, _: m.w[0]}, save_models=True
    )
    steps = np.array([0, 7, 14, 21, 28, 35, 42, 49, 50])
    np.testing.assert_allclose(traj.t, 0.3 * steps, rtol=1e-14)
    np.testing.assert_allclose(traj["w"], 1 - 0.7**steps, rtol=1e-12)
    np.testing.assert_allclose(traj.models.w[:, 0], 1 - 0.7**steps, rtol=1e-12)
    np.testing.assert_allclose(traj.loss, 0.5 * 0.49**steps, rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(traj.gradient_norm, 0.7**steps, rtol=1e-12, atol=1e-15)
    assert traj.status == "success"


def test_time_axis_of_an_optimiser():
    network = tanh_network()
    assert gflow.descend(*network, optax.adam(1e-3), 10).t[-1] == 10
    assert gflow.descend(*network, optax.adam(1e-3), 10, learning_rate=1e-3).t[-1] == 1e-2
    with pytest.raises(ValueError, match="learning_rate must be the time that a step"):
        gflow.descend(*network, 0.1, 10, learning_rate=0.2)


@pytest.mark.parametrize("optimizer", [optax.polyak_sgd(), optax.lbfgs(linesearch=None)])
def test_optimisers_that_want_the_loss(optimizer):
    traj = gflow.descend(*tanh_network(), optimizer, 20)
    assert traj.loss[-1] < traj.loss[0]


def test_epochs_visit_every_example_once():
    n, batch = 10, 3
    model = Linear(jnp.zeros(n))
    # with orthogonal inputs each step moves only the coordinates of its batch
    data = (np.eye(n), np.ones(n))
    traj = gflow.descend(
        model, data, 0.1, 6, minibatch=batch, key=jax.random.key(3), save_every=1, save_models=True
    )
    moved = np.diff(np.asarray(traj.models.w), axis=0) > 0
    assert np.all(moved.sum(axis=1) == batch)
    for epoch in (moved[:3], moved[3:]):
        assert epoch.sum(axis=0).max() == 1 and epoch.sum() == 9
    assert not np.array_equal(moved[:3], moved[3:])
    again = gflow.descend(model, data, 0.1, 6, minibatch=batch, key=jax.random.key(3))
    assert np.array_equal(again.model.w, traj.model.w)


def test_sampling_with_replacement_is_uniform_and_repeats():
    n, steps = 5, 400
    traj = gflow.descend(
        Linear(jnp.zeros(n)),
        (np.eye(n), np.ones(n)),
        1e-6,
        steps,
        minibatch=2,
        replace=True,
        key=jax.random.key(3),
        save_every=1,
        observe={"w": lambda model, _: model.w},
    )
    # with orthogonal inputs, each draw moves its own coordinate by η/2
    counts = np.rint(np.diff(traj["w"], axis=0) / 0.5e-6)
    assert np.all(counts.sum(axis=1) == 2) and counts.max() == 2
    share = (counts == 2).any(axis=1).mean()  # both draws alike: probability 1/n
    assert abs(share - 1 / n) < 4 * np.sqrt(0.2 * 0.8 / steps)
    np.testing.assert_allclose(counts.mean(axis=0), 2 / n, atol=0.13)


def test_minibatch_of_everything_is_full_batch():
    network = tanh_network()
    full = gflow.descend(*network, 0.2, 20)
    batch = gflow.descend(*network, 0.2, 20, minibatch=30, key=jax.random.key(0))
    assert_same(batch.model, eqx.filter(full.model, eqx.is_inexact_array), atol=1e-12)
    np.testing.assert_allclose(batch.loss, full.loss, rtol=1e-12)


def test_stops_at_the_first_step_that_satisfies():
    model, data = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    traj = gflow.descend(model, data, 0.3, 500, stop=gflow.stop.LossBelow(0.01))
    first = int(np.ceil(np.log(0.02) / np.log(0.49)))
    assert traj.status == "stopped" and traj.stats["steps"] == first
    np.testing.assert_allclose(traj.t[-1], 0.3 * first)
    np.testing.assert_allclose(traj.loss[-1], 0.5 * 0.49**first, rtol=1e-12)
    traj = gflow.descend(
        model,
        data,
        0.3,
        500,
        observe={"w": lambda m, _: m.w[0]},
        stop=[gflow.stop.GradientNormBelow(1e-9), gflow.stop.Crosses("w", 0.5)],
    )
    assert traj.stats["steps"] == 2 and traj["w"][-1] > 0.5
    stochastic = gflow.descend(
        *tanh_network(),
        0.2,
        500,
        minibatch=10,
        key=jax.random.key(0),
        save_every=10,
        stop=gflow.stop.LossBelow(0.2),
    )
    assert stochastic.status == "stopped" and stochastic.stats["steps"] % 10 == 0
    assert stochastic.loss[-1] <= 0.2 < stochastic.loss[-2]


def test_divergence_is_reported_with_the_path_up_to_there():
    model, data = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    with pytest.raises(gflow.FlowError, match="diverged") as caught:
        gflow.descend(model, data, 3.0, 5000)
    traj = caught.value.trajectory
    assert traj.status == "diverged" and not traj.ok and "learning rate" in traj.reason
    assert np.all(np.isfinite(traj.loss)) and np.all(np.isfinite(traj.model.w))
    np.testing.assert_allclose(traj.step_loss, 0.5 * 4.0 ** np.arange(len(traj.step_loss)), rtol=1e-12)
    assert gflow.descend(model, data, 1e300, 5, throw=False).status == "diverged"
    with pytest.warns(UserWarning, match="above its start"):
        traj = gflow.descend(model, data, 2.1, 5)
    assert traj.ok and "above its start" in traj.warnings[0]


def test_nan_in_the_gradient_is_nonfinite():
    def loss(model, data):
        return jnp.sum(model.w) + jnp.sqrt(model.w[0] - 0.5) * 1e-9

    traj = gflow.descend(Linear(jnp.full(1, 1.05)), None, 0.1, 100, loss=loss, throw=False)
    assert traj.status == "nonfinite" and "step 6" in traj.reason  # w = 0.45 is the first below ½
    assert traj.stats["steps"] == 5 and np.isfinite(traj.loss[-1])


@pytest.mark.parametrize("optimizer", [0.1, optax.adam(0.05)])
def test_a_refused_step_leaves_everything_as_it_was(optimizer):
    """Square roots of parameters, of which a step takes one below zero."""
    model, loss = {"w": jnp.array([1.0, 2.0, 3.0])}, lambda model, data: jnp.sum(jnp.sqrt(model["w"]))
    refused = gflow.descend(model, None, optimizer, 1000, loss=loss, save_every=7, throw=False)
    steps = refused.stats["steps"]
    assert refused.status == "nonfinite" and f"at step {steps + 1}" in refused.reason and steps > 3
    whole = gflow.descend(model, None, optimizer, steps, loss=loss, save_every=7)
    assert np.all(whole.model["w"] > 0)
    assert np.array_equal(refused.model["w"], whole.model["w"])
    for of in ("step_loss", "loss", "gradient_norm", "t"):
        assert np.array_equal(getattr(refused, of), getattr(whole, of))


def test_other_numbers_compile_nothing():
    from test_integrate import _count_compilations

    network = tanh_network(sizes=(5, 9, 3))
    gflow.descend(*network, 0.1, 20)
    with _count_compilations() as compiled:
        gflow.descend(*network, 0.2, 33)
        gflow.descend(*network, 0.2, 300, save_every=2)
    assert compiled == []


@pytest.mark.slow
def test_records_do_not_change_the_path():
    network = tanh_network()
    runs = [
        gflow.descend(*network, 0.3, 50),
        gflow.descend(*network, 0.3, 50, save_every=1, observe=[gflow.observe.Sharpness()]),
        gflow.descend(*network, 0.3, 50, save_every=50, save_models=True),
    ]
    first, *others = [jax.tree.leaves(eqx.filter(run.model, eqx.is_array)) for run in runs]
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert np.array_equal(a, b)


def test_gradients_are_counted():
    network = tanh_network()
    full = gflow.descend(*network, 0.1, 20).stats
    assert full["gradients"] - full["record_gradients"] == 21
    stochastic = gflow.descend(*network, 0.1, 20, minibatch=5, key=jax.random.key(0), save_every=10).stats
    assert stochastic["gradients"] - stochastic["record_gradients"] == 21
    assert stochastic["record_gradients"] == 3 + 2  # and two to check the start


def test_a_loss_that_underflows_is_said():
    model, data = Linear(jnp.zeros(2, jnp.float32)), (np.eye(2, dtype="float32"), np.ones(2, "float32"))
    steps = optax.sign_sgd(1.0)
    with pytest.warns(UserWarning, match="underflowed to 0 in float32"):
        stuck = gflow.descend(model, data, steps, 300, loss=gflow.losses.Exponential())
    going_on = gflow.descend(model, data, steps, 300, loss=gflow.losses.Log(gflow.losses.Exponential()))
    last = 90 if jax.default_backend() == "cpu" else 105  # GPUs keep numbers down to e⁻¹⁰³
    assert stuck.model.w[0] < last and going_on.model.w[0] == 300 and not going_on.warnings


def test_an_optimiser_that_takes_no_extra_arguments():
    """Sharpness-aware minimisation: a step along the unit gradient, then one by the gradient there."""
    model, data = tanh_network()
    loss = gflow.losses.Squared()
    sam = optax.contrib.sam(
        optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), sync_period=2
    )
    path = gflow.descend(model, data, sam, 2)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    gradient = jax.grad(lambda p: loss(eqx.combine(p, static), data))
    climb = gradient(params)
    length = optax.tree.norm(climb)
    above = jax.tree.map(lambda p, g: p + 0.05 * g / length, params, climb)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(above))
    for a, b in zip(
        *map(jax.tree.leaves, (eqx.filter(path.model, eqx.is_inexact_array), expected)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
