"""Many members at once: each as if it were alone, with its own end."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import DeepScalar, Linear, deep_scalar_loss, tanh_network
from test_integrate import _count_compilations

import gflow


class Scalar(eqx.Module):
    """One parameter w, and a rate that isn't trained."""

    w: jax.Array
    rate: jax.Array
    label: str = eqx.field(static=True, default="a static field")


def polynomial(model, coefficients):
    """c/2 w² − b/4 w⁴: w' = −c w decays, w' = b w³ blows up at t = 1/(2 b w²)."""
    c, b = coefficients
    return model.rate * (c * model.w**2 / 2 - b * model.w**4 / 4)


STARTS = np.array([0.1, 0.2, 2.0, 0.3])
MODELS = Scalar(jnp.asarray(STARTS), jnp.ones(4))
TRAINABLE = Scalar(True, False)
FLOW = dict(loss=polynomial, trainable=TRAINABLE, ensemble=True, rtol=1e-9, atol=1e-12, save_at=11)
DECAY, BLOW_UP = (1.0, 0.0), (0.0, 1.0)


def member(model, i):
    return jax.tree.map(lambda leaf: leaf[i] if eqx.is_array(leaf) else leaf, model)


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Ralston(), diffrax.Kvaerno5()])
def test_every_member_follows_its_flow(solver):
    call = FLOW | dict(observe={"w": lambda m, _: m.w}, save_models=True, solver=solver)
    traj = gflow.integrate(MODELS, DECAY, 3.0, **call)
    exact = STARTS[:, None] * np.exp(-np.linspace(0, 3, 11))
    assert traj.status == "success" and traj.statuses == ("success",) * 4 and traj.t.shape == (11,)
    np.testing.assert_allclose(traj["w"], exact, rtol=1e-7)
    np.testing.assert_allclose(traj.loss, exact**2 / 2, rtol=1e-7)
    np.testing.assert_allclose(traj.gradient_norm, exact, rtol=1e-7)
    np.testing.assert_array_equal(traj.models.w, traj["w"])
    np.testing.assert_array_equal(traj.model.w, traj["w"][:, -1])
    np.testing.assert_array_equal(traj.end["loss"], traj.loss[:, -1])
    assert np.all(traj.end["t"] == 3.0)


def test_a_member_that_fails_leaves_the_others_alone():
    run = lambda **kwargs: gflow.integrate(MODELS, BLOW_UP, 1.0, **FLOW, **kwargs)
    with pytest.raises(gflow.FlowError, match="1 of 4 members failed, member 2 for one") as caught:
        run()
    traj = caught.value.trajectory
    assert traj.status == "diverged" and [s == "success" for s in traj.statuses] == [True, True, False, True]
    fine = [0, 1, 3]
    w = STARTS[:, None] / np.sqrt(np.maximum(1 - 2 * STARTS[:, None] ** 2 * traj.t, 1e-9))
    np.testing.assert_allclose(traj.loss[fine], -(w[fine] ** 4) / 4, rtol=1e-7)
    np.testing.assert_allclose(traj.loss[2, :2], -(w[2, :2] ** 4) / 4, rtol=1e-6)
    assert np.all(np.isnan(traj.loss[2, 2:]))
    np.testing.assert_allclose(traj.end["t"], [1, 1, 1 / 8, 1], rtol=1e-6)
    assert traj.model.w[2] > 1e3 and np.isfinite(traj.model.w[2])
    short = run(max_steps=2, throw=False)
    assert set(short.statuses) == {"max_steps"} and short.stats["steps"] == [2] * 4
    assert "member 0 for one" in short.reason and "2 steps" in short.reasons[3]


def test_members_stop_where_they_would_alone():
    call = dict(stop=gflow.stop.LossBelow(1e-3), save_models=True)
    traj = gflow.integrate(MODELS, DECAY, 2.5, **FLOW, **call)
    level = np.sqrt(2e-3)
    ends = np.array([np.log(0.1 / level), np.log(0.2 / level), 2.5, np.log(0.3 / level)])
    assert traj.ok and traj.status == "stopped" and "3 of 4 members were stopped" in traj.reason
    assert traj.statuses == ("stopped", "stopped", "success", "stopped") and "LossBelow" in traj.reasons[0]
    np.testing.assert_allclose(traj.end["t"], ends, rtol=1e-8)
    np.testing.assert_allclose(traj.end["loss"][[0, 1, 3]], 1e-3, rtol=1e-8)
    np.testing.assert_allclose(traj.model.w, STARTS * np.exp(-ends), rtol=1e-8)
    beyond = traj.t > ends[:, None]
    for values in (traj.loss, traj.gradient_norm, np.asarray(traj.models.w)):
        np.testing.assert_array_equal(np.isnan(values), beyond)
    lower = gflow.integrate(Scalar(MODELS.w / 10, jnp.ones(4)), DECAY, 2.5, **FLOW, **call)
    assert lower.statuses[0] == "stopped" and lower.end["t"][0] == 0.0  # it starts below the level
    np.testing.assert_array_equal(np.isnan(lower.loss[0]), [False] + [True] * 10)


def test_a_member_whose_start_atol_swamps_is_named():
    tiny = Scalar(jnp.array([0.1, 1e-12, 0.3, 0.2]), jnp.ones(4))
    with pytest.warns(UserWarning, match="^member 1: atol = 1.0e-12 is not far below the scale 1.0e-12"):
        traj = gflow.integrate(tiny, DECAY, 1.0, **FLOW)
    assert len(traj.warnings) == 1


@pytest.mark.slow
def test_each_member_is_its_single_run():
    starts = jnp.exp(jax.random.uniform(jax.random.key(0), (6, 4), minval=-9.0, maxval=-2.0)) ** (1 / 3)
    target = jnp.array([12.0, 6.0, 4.0, 3.0])
    call = dict(loss=deep_scalar_loss, rtol=1e-6, atol=1e-9, observe=[gflow.observe.Sharpness()])
    together = gflow.integrate(DeepScalar(starts, 3), target, 2.0, ensemble=True, **call)
    alone = [gflow.integrate(DeepScalar(w, 3), target, 2.0, **call) for w in starts]
    for name in ("loss", "gradient_norm", "sharpness"):
        assert together[name].shape == (6, 101)
        np.testing.assert_allclose(together[name], [run[name] for run in alone], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(together.model.w, [run.model.w for run in alone], rtol=1e-7)
    for count in ("steps", "rejected", "gradients", "hvps", "record_gradients", "record_hvps"):
        assert together.stats[count] == [run.stats[count] for run in alone]
    assert len(set(together.stats["steps"])) > 1  # each has its own steps


@pytest.mark.parametrize("kind", ["Auto", pytest.param("Explicit", marks=pytest.mark.slow)])
def test_members_spread_over_devices(kind):
    kinds = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((2,), ("of members",), axis_types=kinds, devices=jax.devices("cpu")[:2])
    places = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("of members"))
    models = jax.device_put(MODELS, places)
    on_devices = lambda run: [set(x.sharding.device_set) for x in jax.tree.leaves(run.model)]
    refuse = lambda m, _: eqx.error_if(m.w, (m.w > 0.21) & (m.w < 0.25), "between them")

    level = dict(stop=gflow.stop.LossBelow(1e-3), observe={"w": lambda m, _: m.w})
    flow = gflow.integrate(models, DECAY, 2.5, **FLOW, **level)
    ends = np.minimum(np.log(STARTS / np.sqrt(2e-3)), 2.5)
    np.testing.assert_allclose(flow.end["t"], ends, rtol=1e-8)
    np.testing.assert_allclose(flow.model.w, STARTS * np.exp(-ends), rtol=1e-8)
    kept = flow.t <= ends[:, None]
    np.testing.assert_allclose(flow["w"][kept], (STARTS[:, None] * np.exp(-flow.t))[kept], rtol=1e-7)

    call = dict(loss=polynomial, trainable=TRAINABLE, ensemble=True, throw=False)
    descent = gflow.descend(models, DECAY, 0.1, 40, **call)
    w = STARTS[:, None] * 0.9 ** np.arange(41)
    np.testing.assert_allclose(descent.step_loss, w**2 / 2, rtol=1e-12)
    assert on_devices(flow) == on_devices(descent) == [set(mesh.devices.flat)] * 2

    with pytest.raises(ValueError, match="must not be implicit for members that lie on several devices"):
        gflow.integrate(models, DECAY, 1.0, **FLOW, solver=diffrax.Kvaerno5())
    blown = gflow.integrate(models, BLOW_UP, 1.0, **FLOW, throw=False)
    assert blown.statuses == ("success", "success", "diverged", "success")
    failed = gflow.descend(models, DECAY, 0.1, 40, observe={"w": refuse}, **call)
    assert set(failed.statuses) == {"error"} and "between them" in failed.reason
    np.testing.assert_allclose(failed.end["loss"], (STARTS * 0.9) ** 2 / 2, rtol=1e-12)


@pytest.mark.slow
def test_curvature_of_members_on_several_devices_and_of_a_single_one_later():
    mesh = jax.make_mesh((2,), ("of members",), devices=jax.devices("cpu")[:2])
    spread = jax.device_put(MODELS, jax.NamedSharding(mesh, jax.P("of members")))
    call = dict(loss=polynomial, trainable=TRAINABLE, observe=[gflow.observe.Sharpness()], save_at=2)
    together = gflow.integrate(spread, (3.0, 0.0), 1.0, ensemble=True, **call)
    alone = gflow.integrate(member(MODELS, 0), (3.0, 0.0), 1.0, **call)
    np.testing.assert_allclose(together["sharpness"], 3.0, rtol=1e-6)
    np.testing.assert_allclose(alone["sharpness"], 3.0, rtol=1e-6)


def test_an_ensemble_is_shown_saved_and_loaded(tmp_path):
    together = gflow.integrate(MODELS, DECAY, 1.0, **FLOW)
    shown = repr(together)
    assert "4 members" in shown and "0.005 to 2 →" in shown and "11 records" in shown
    together.save(tmp_path / "run.npz")
    back = gflow.load(tmp_path / "run.npz", like=together.model)
    assert eqx.tree_equal(back.model, together.model) and back.stats == together.stats
    assert (back.statuses, back.reasons) == (together.statuses, together.reasons)
    for one, other in ((back.records, together.records), (back.end, together.end)):
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_other_numbers_compile_nothing():
    gflow.integrate(MODELS, DECAY, 1.0, **FLOW)
    gflow.descend(MODELS, DECAY, 0.1, 10, loss=polynomial, trainable=TRAINABLE, ensemble=True)
    other = Scalar(MODELS.w / 3, MODELS.rate * 2)
    with _count_compilations() as compiled:
        gflow.integrate(other, (0.5, 0.0), 2.0, **FLOW | {"rtol": 1e-8, "save_at": 5})
        gflow.descend(other, (0.5, 0.0), 0.3, 25, loss=polynomial, trainable=TRAINABLE, ensemble=True)
    assert compiled == []


def test_descents_of_all_members():
    rates = np.array([1.0, 3.0, 25.0])
    models = Scalar(jnp.asarray(STARTS[:3]), jnp.asarray(rates))  # what isn't trained differs as well
    traj = gflow.descend(
        models, DECAY, 0.1, 40, loss=polynomial, trainable=TRAINABLE, ensemble=True, save_every=4, throw=False
    )
    assert traj.statuses == ("success", "success", "diverged") and traj.status == "diverged"
    w = STARTS[:3, None] * (1 - 0.1 * rates[:, None]) ** np.arange(41)
    exact = rates[:, None] * w**2 / 2
    assert traj.step_loss.shape == (3, 41)
    lengths = np.sum(np.isfinite(traj.step_loss), axis=1)
    assert traj.stats["steps"] == list(lengths - 1) and lengths[0] == lengths[1] == 41 > lengths[2]
    for i in range(3):
        np.testing.assert_allclose(traj.step_loss[i, : lengths[i]], exact[i, : lengths[i]], rtol=1e-12)
    np.testing.assert_allclose(traj.loss[:2], exact[:2, ::4], rtol=1e-12)
    assert np.array_equal(np.isnan(traj.loss[2]), np.arange(0, 41, 4) > lengths[2] - 1)
    np.testing.assert_allclose(traj.end["t"], 0.1 * (lengths - 1))
    np.testing.assert_array_equal(traj.model.rate, rates)


@pytest.mark.slow
def test_mini_batches_of_any_model():
    _, data = tanh_network()
    make = lambda key: eqx.nn.MLP(5, 3, 12, 1, activation=jnp.tanh, key=key)
    models = eqx.filter_vmap(make)(jax.random.split(jax.random.key(1), 3))
    last = jax.tree.map(lambda _: False, models)
    last = eqx.tree_at(lambda m: m.layers[-1], last, True)
    call = dict(minibatch=7, key=jax.random.key(5), save_every=10, trainable=last)
    optimizer = optax.adam(0.01)
    together = gflow.descend(models, data, optimizer, 30, ensemble=True, **call)
    alone = [gflow.descend(member(models, i), data, optimizer, 30, **call) for i in range(3)]
    np.testing.assert_allclose(together.loss, [run.loss for run in alone], rtol=1e-10)
    np.testing.assert_allclose(together.step_loss, [run.step_loss for run in alone], rtol=1e-10)
    assert together.stats["gradients"] == [run.stats["gradients"] for run in alone]
    assert np.array_equal(together.model.layers[0].weight, models.layers[0].weight)


def test_what_is_not_trained_may_be_shared():
    shared = jnp.asarray(2.0)
    traj = gflow.integrate(Scalar(MODELS.w, shared), DECAY, 1.0, **FLOW)
    np.testing.assert_allclose(traj.end["loss"], STARTS**2 * np.exp(-4.0), rtol=1e-7)
    assert traj.model.rate.shape == ()


def test_interrupted_members_keep_what_they_have(monkeypatch):
    record, calls = gflow._ensemble.EnsembleRun._record, []

    def impatient(self, target):
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        record(self, target)

    monkeypatch.setattr(gflow._ensemble.EnsembleRun, "_record", impatient)
    traj = gflow.integrate(MODELS, DECAY, 1.0, **FLOW)
    assert traj.status == "interrupted" and set(traj.statuses) == {"interrupted"}
    np.testing.assert_array_equal(np.isfinite(traj.loss), np.tile(np.arange(11) < 3, (4, 1)))
    assert np.all(traj.end["t"] >= 0.3)
    np.testing.assert_allclose(traj.end["loss"], STARTS**2 / 2 * np.exp(-2 * traj.end["t"]), rtol=1e-7)


@pytest.mark.parametrize(
    "model, message",
    [
        (Scalar(jnp.ones(3), jnp.ones(2)), r"one leading axis of members.*w has shape \(3,\)"),
        (Scalar(jnp.array(1.0), jnp.array(1.0)), r"one leading axis of members.*w has shape \(\)"),
        (Scalar(jnp.ones(0), jnp.ones(0)), "no trainable leaf"),
        (Scalar(jnp.array([1.0, np.nan]), jnp.ones(2)), "finite parameters.*w"),
    ],
)
def test_members_that_do_not_fit(model, message):
    with pytest.raises(ValueError, match=message):
        gflow.integrate(model, DECAY, 1.0, loss=polynomial, ensemble=True)


def test_a_single_model_or_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="first of 3 members.*ensemble=True"):
        gflow.integrate(Linear(jnp.ones(3)), (np.eye(3), np.ones(3)), 1.0, ensemble=True)
    with pytest.raises(ValueError, match="checkpoint can't be used with ensemble=True"):
        gflow.integrate(MODELS, DECAY, 1.0, checkpoint=tmp_path / "c", **FLOW)
    start = Scalar(jnp.array([1.0, 1e300]), jnp.ones(2))
    with pytest.raises(ValueError, match="loss of member 1 is nan"):
        gflow.descend(start, DECAY, 0.1, 3, loss=polynomial, trainable=TRAINABLE, ensemble=True)


@pytest.mark.slow
def test_an_observable_that_fails_at_the_first_record_is_said():
    models = eqx.filter_vmap(lambda key: eqx.nn.MLP(2, "scalar", 4, 1, key=key))(
        jax.random.split(jax.random.key(0), 3)
    )
    data = np.eye(2), np.array([1.0, -1.0])
    options = dict(observe={"margin": gflow.bias.parameter_margin}, ensemble=True, throw=False)
    for run in (
        gflow.integrate(models, data, 1.0, **options),
        gflow.descend(models, data, 0.1, 5, **options),
    ):
        assert run.statuses == ("error",) * 3 and "homogeneous" in run.reason
        assert np.all(np.isnan(run.loss))


def test_members_in_which_a_clock_cannot_begin_are_named():
    model, data = Linear(jnp.array([[1.0, 1.0], [-1.0, 0.0], [1.0, 0.5]])), (np.eye(2), np.ones(2))
    call = dict(loss=gflow.losses.Exponential(), clock=gflow.clocks.LogNorm(), ensemble=True)
    for order, members in (([0, 1, 2], "1"), ([1, 0, 2], "0"), ([1, 2, 1], "0, 2")):
        with pytest.raises(ValueError, match=rf"needs parameters whose norm grows.*members {members}\."):
            gflow.integrate(Linear(model.w[jnp.array(order)]), data, 1.0, **call)
