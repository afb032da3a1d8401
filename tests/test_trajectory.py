import json
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import Linear, tanh_network

import gflow


@pytest.fixture(scope="module")
def run():
    network = tanh_network(sizes=(3, 4, 2))
    observe = {"first": lambda model, data: model.layers[0].weight}
    return network, gflow.integrate(*network, 1.0, save_at=5, save_models=True, observe=observe)


def test_save_and_load_give_everything_back(run, tmp_path):
    (model, _), traj = run
    traj.save(tmp_path / "run.npz")
    blank = jax.tree.map(lambda a: a * 0 if eqx.is_array(a) else a, model)
    back = gflow.load(tmp_path / "run.npz", like=blank)
    assert eqx.tree_equal(back.model, traj.model) and eqx.tree_equal(back.models, traj.models)
    assert back.records.keys() == traj.records.keys()
    for name, values in traj.records.items():
        assert values.dtype == back[name].dtype and np.array_equal(values, back[name])
    assert np.array_equal(back.t, traj.t)
    assert (back.status, back.reason, back.stats) == (traj.status, traj.reason, traj.stats)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]  # nothing half-written stays behind


def test_save_and_load_of_a_descent(run, tmp_path):
    (model, data), _ = run
    traj = gflow.descend(model, data, 0.1, 7)
    traj.save(tmp_path / "run.npz")
    back = gflow.load(tmp_path / "run.npz", like=model)
    assert np.array_equal(back.step_loss, traj.step_loss) and back.models is None


def test_a_file_from_another_model_dtype_or_version(run, tmp_path):
    (model, _), traj = run
    file = tmp_path / "run.npz"
    traj.save(file)
    with pytest.raises(ValueError, match="another model.*layers"):
        gflow.load(file, like=tanh_network(sizes=(3, 4, 4, 2))[0])
    with pytest.raises(ValueError, match=r"shape \(4, 3\).*where `like` has \(5, 3\)"):
        gflow.load(file, like=tanh_network(sizes=(3, 5, 2))[0])
    single = jax.tree.map(lambda a: a.astype(np.float32) if eqx.is_array(a) else a, model)
    with pytest.raises(ValueError, match="float64.*float32"):
        gflow.load(file, like=single)
    with np.load(file) as archive:
        contents = dict(archive)
    header = json.loads(contents["header"].tobytes())
    for change, message in (({"format": 99}, "format 99"), ({"kind": "checkpoint"}, "holds a checkpoint")):
        contents["header"] = np.frombuffer(json.dumps(header | change).encode(), np.uint8)
        np.savez(tmp_path / "other.npz", **contents)
        with pytest.raises(ValueError, match=message):
            gflow.load(tmp_path / "other.npz", like=model)


def test_truncated_and_foreign_files(run, tmp_path):
    (model, _), traj = run
    traj.save(tmp_path / "run.npz")
    whole = (tmp_path / "run.npz").read_bytes()
    bad = tmp_path / "bad.npz"
    for content in (b"", b"hello", whole[:100], whole[: len(whole) // 2], whole[:-30], whole[50:]):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="not a file that gflow wrote, or is damaged"):
            gflow.load(bad, like=model)
    np.savez(bad, x=np.ones(3))
    with pytest.raises(ValueError, match="not a file that gflow wrote"):
        gflow.load(bad, like=model)
    flipped = bytearray(whole)
    flipped[whole.index(traj.loss.tobytes()) + 3] ^= 0xFF
    bad.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match="not a file that gflow wrote"):
        gflow.load(bad, like=model)
    with pytest.raises(FileNotFoundError):
        gflow.load(tmp_path / "none.npz", like=model)


def test_a_failed_save_keeps_the_old_file(run, tmp_path, monkeypatch):
    _, traj = run
    file = tmp_path / "run.npz"
    traj.save(file)
    before = file.read_bytes()

    def disk_full(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", disk_full)
    with pytest.raises(OSError, match="No space"):
        traj.save(file)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_access_and_repr(run):
    _, traj = run
    assert np.array_equal(traj["loss"], traj.loss) and np.array_equal(traj.s, traj.t)
    np.testing.assert_array_equal(traj.log_t[1:], np.log(traj.t[1:]))
    assert traj.log_t[0] == -np.inf
    assert traj["first"].shape == (5, 4, 3)
    with pytest.raises(KeyError, match="'sharpness' was not recorded.*first"):
        traj["sharpness"]
    shown = repr(traj)
    assert (
        "success" in shown and "5 records" in shown and traj.stats["solver"] in shown and "(5, 4, 3)" in shown
    )


def test_flow_error_carries_the_trajectory_and_pickles():
    model, data = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    with pytest.raises(gflow.FlowError, match="max_steps") as caught:
        gflow.integrate(model, data, 100.0, max_steps=3)
    traj = caught.value.trajectory
    assert traj.status == "max_steps" and traj.stats["steps"] == 3 and 0 < traj.t[-1] < 100
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.trajectory.reason == traj.reason


def test_a_model_with_a_random_key_is_saved(tmp_path):
    class Keyed(Linear):
        key: jax.Array

    model = Keyed(jnp.zeros(1), jax.random.key(5))
    traj = gflow.integrate(model, (np.ones((1, 1)), np.ones(1)), 1.0, save_at=2)
    traj.save(tmp_path / "run.npz")
    back = gflow.load(tmp_path / "run.npz", like=model)
    assert np.array_equal(jax.random.key_data(back.model.key), jax.random.key_data(model.key))
    assert np.array_equal(back.model.w, traj.model.w)


def test_the_records_are_those_of_a_dictionary():
    path = gflow.descend(*tanh_network(), 0.1, 4, observe={"two": lambda model, data: jnp.ones(2)})
    assert "two" in path and "three" not in path and list(path) == ["loss", "gradient_norm", "two"]
    assert dict(path)["two"].shape == (5, 2)


@pytest.mark.parametrize("verb", [gflow.integrate, gflow.descend])
def test_the_model_at_a_record_has_its_frozen_leaves(verb):
    model, (x, y) = tanh_network()
    trainable = lambda leaf: eqx.is_inexact_array(leaf) and leaf.ndim == 2  # no biases
    options = dict(loss=gflow.losses.Squared(), trainable=trainable, save_models=True)
    if verb is gflow.integrate:
        path = verb(model, (x, y), 1.0, save_at=5, **options)
    else:
        path = verb(model, (x, y), 0.1, 4, **options)
    losses = [gflow.Problem(path.model_at(k), (x, y), gflow.losses.Squared()) for k in range(5)]
    np.testing.assert_allclose([float(p.value(p.params)) for p in losses], path.loss, rtol=1e-12)
    members = eqx.filter_vmap(
        lambda scale: jax.tree.map(lambda p: scale * p, eqx.filter(model, eqx.is_array))
    )
    many = eqx.combine(members(jnp.array([1.0, 0.5])), model)
    both = gflow.descend(many, (x, y), 0.1, 4, ensemble=True, save_models=True)
    second = jax.tree.map(lambda p: p[1] if eqx.is_array(p) else p, both.model_at(2))
    found = gflow.Problem(second, (x, y), gflow.losses.Squared())
    np.testing.assert_allclose(found.value(found.params), both.loss[1, 2], rtol=1e-12)
