"""An interrupted run goes on from its file and ends as if nothing had happened."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import Linear, ctrl_c_at_record, tanh_network

import gflow
from gflow._checkpoint import Checkpoint
from gflow._stepper import Run

ADAM = optax.adam(1e-2)  # one object, because another would be another program
OBSERVE = {"sharpness": gflow.observe.Sharpness(), "first": lambda model, data: model.layers[0].weight}


def flow(path, **changes):
    observe = {"first": OBSERVE["first"]}
    arguments = {"rtol": 1e-5, "save_at": 9, "observe": observe, "save_models": True} | changes
    return gflow.integrate(*tanh_network(), 10.0, checkpoint=path, **arguments)


def descent(path, **changes):
    observe = OBSERVE | {"oscillation": gflow.observe.Oscillation()}
    arguments = {"minibatch": 7, "key": jax.random.key(1), "save_every": 5, "observe": observe} | changes
    return gflow.descend(*tanh_network(), ADAM, 40, checkpoint=path, **arguments)


def stiff_flow(path, **changes):
    return flow(path, solver=gflow.solvers.EXPRB42(), observe=OBSERVE, **changes)


@pytest.fixture
def interrupted_at_record_five(monkeypatch):
    ctrl_c_at_record(monkeypatch, 5)
    yield
    monkeypatch.undo()


@pytest.mark.parametrize("run", [flow, stiff_flow, descent])
@pytest.mark.slow
def test_goes_on_bit_for_bit(run, tmp_path, interrupted_at_record_five, monkeypatch):
    path = tmp_path / "run.npz"
    partial = run(path)
    assert partial.status == "interrupted" and len(partial.t) == 5 and path.exists()
    monkeypatch.undo()
    whole, resumed = run(None), run(path)
    assert resumed.status == "success"
    assert eqx.tree_equal(resumed.model, whole.model)
    assert eqx.tree_equal(resumed.models, whole.models)
    observed = {"first"} if run is flow else {"first", "sharpness", "sharpness_residual"}
    assert {"loss", "gradient_norm"} | observed <= set(whole.records)
    for name, values in whole.records.items():
        assert np.array_equal(resumed[name], values)
    assert np.array_equal(resumed.t, whole.t)
    if run is descent:
        assert np.array_equal(partial.step[:4], whole.step[:4])
        assert np.array_equal(resumed.step, whole.step)
        assert np.array_equal(resumed.step_loss, whole.step_loss)
        assert "oscillation" in whole.records
    for count in ("steps", "rejected", "hvps", "record_hvps"):
        assert resumed.stats[count] == whole.stats[count]


@pytest.mark.slow
def test_belongs_to_one_run(tmp_path, interrupted_at_record_five):
    path, observe = tmp_path / "run.npz", {"first": OBSERVE["first"]}
    flow(path, observe=observe)
    with pytest.raises(ValueError, match="belongs to another run"):
        flow(path, observe=observe, rtol=1e-4)
    with pytest.raises(ValueError, match="belongs to another run"):
        flow(path, observe=observe, save_at=10)
    with pytest.raises(ValueError, match="belongs to another run"):
        gflow.descend(*tanh_network(), ADAM, 40, checkpoint=path, save_every=5, observe=observe)
    with pytest.raises(ValueError, match="belongs to another run"):
        flow(path, observe={"first": lambda model, data: 2 * model.layers[0].weight})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a file that gflow wrote, or is damaged"):
        flow(path, observe=observe)


def test_both_paths_of_a_comparison_end_together(interrupted_at_record_five):
    model, data = Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1))
    both = gflow.compare(model, data, learning_rate=0.1, t_max=5.0)
    assert both.flow.status == both.descent.status == "interrupted"
    assert len(both.distance) == 4 and len(both.flow.t) <= 6


def test_numbers_inside_functions_belong_to_the_run(tmp_path, interrupted_at_record_five, monkeypatch):
    path = tmp_path / "run.npz"
    towards = lambda goal: lambda model, data: 0.5 * jnp.sum((model.w - goal) ** 2)
    run = lambda rate, goal: gflow.descend(
        Linear(jnp.zeros(1)), None, optax.adam(rate), 20, loss=towards(goal), save_every=2, checkpoint=path
    )
    assert run(0.1, 2.0).status == "interrupted"
    monkeypatch.undo()
    for rate, goal in ((0.2, 2.0), (0.1, 3.0)):
        with pytest.raises(ValueError, match="belongs to another run"):
            run(rate, goal)
    assert run(0.1, 2.0).status == "success"


def test_arrays_inside_functions_belong_to_the_run(tmp_path, interrupted_at_record_five, monkeypatch):
    path = tmp_path / "run.npz"
    towards = lambda goal: lambda model, data: 0.5 * jnp.sum((model.w - goal) ** 2)
    run = lambda goal: gflow.integrate(
        Linear(jnp.zeros(2)), None, 5.0, loss=towards(np.array(goal)), save_at=20, checkpoint=path
    )
    assert run([1.0, 2.0]).status == "interrupted"
    monkeypatch.undo()
    with pytest.raises(ValueError, match="belongs to another run"):
        run([1.0, 3.0])
    assert run([1.0, 2.0]).status == "success"


def test_a_checkpoint_needs_a_place_and_a_failed_one_costs_no_run(tmp_path, monkeypatch, unchecked):
    run = lambda path: gflow.descend(
        Linear(jnp.zeros(1)), (np.ones((1, 1)), np.ones(1)), 0.1, 5, checkpoint=path
    )
    with pytest.raises(ValueError, match="checkpoint must lie in a folder that exists"):
        run(tmp_path / "nowhere" / "run.npz")
    with pytest.raises(ValueError, match="checkpoint must be the path of a file, but a int came"):
        run(3)
    monkeypatch.setattr("gflow._checkpoint._SECONDS_BETWEEN", -1.0)

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr("gflow._checkpoint.write_archive", full)
    with pytest.warns(UserWarning, match="checkpoint could not be written: no space left"):
        assert run(tmp_path / "run.npz").ok


def noisy(path):
    optimizer = optax.chain(optax.add_noise(0.01, 0.5, 0), optax.sgd(0.1))  # keeps a random key
    return gflow.descend(*tanh_network(), optimizer, 40, save_every=5, checkpoint=path)


@pytest.mark.slow
def test_random_keys_of_an_optimiser_are_kept(tmp_path, interrupted_at_record_five, monkeypatch):
    path = tmp_path / "run.npz"
    assert noisy(path).status == "interrupted"
    monkeypatch.undo()
    whole, resumed = noisy(None), noisy(path)
    assert resumed.status == "success" and eqx.tree_equal(resumed.model, whole.model)
    assert np.array_equal(resumed.step_loss, whole.step_loss)


def test_an_interrupt_while_the_file_is_read_leaves_it_alone(
    tmp_path, interrupted_at_record_five, monkeypatch
):
    path = tmp_path / "run.npz"
    run = lambda: flow(path, observe=(), save_models=False)
    assert run().status == "interrupted"
    before = path.read_bytes()

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "read", interrupted)
        assert run().status == "interrupted"
    assert path.read_bytes() == before


def test_an_interrupt_while_a_run_goes_on_from_its_file_records_the_place_reached(
    tmp_path, interrupted_at_record_five, monkeypatch
):
    path = tmp_path / "run.npz"
    run = lambda: flow(path, observe=(), save_models=False)
    partial = run()
    monkeypatch.undo()
    go_on = Run._go_on_from

    def interrupted(self, *arguments):
        go_on(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_go_on_from", interrupted)
        again = run()
    assert again.status == "interrupted" and again.t[-1] == partial.t[-1] > partial.t[-2]
    assert again.loss[-1] == partial.loss[-1] < partial.loss[-2]


def test_a_run_goes_on_from_its_last_record(tmp_path, monkeypatch):
    path, drive = tmp_path / "run.npz", Run._drive
    run = lambda: flow(path, observe=(), save_models=False)

    def interrupted_at_the_end(self):
        for params in drive(self):
            yield params
            if len(self.t) == 9:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_drive", interrupted_at_the_end)
        assert run().status == "interrupted"
    again = run()
    assert again.status == "success" and len(again.t) == 9
