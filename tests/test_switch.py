"""The default of small problems and tight tolerances: Tsit5, and RKC3 from where stability limits it."""

import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import counting, ctrl_c_at_record

import gflow
from gflow import _switch

LEVELS = np.append(0.0, np.geomspace(0.05, 300.0, 39))
START = np.random.default_rng(0).normal(size=40)
HORIZON = 200.0


def well(model, data):
    return 0.5 * jnp.sum(jnp.asarray(LEVELS) * model["w"] ** 2) + 0.25 * jnp.sum(model["w"] ** 4)


def well_at(t):
    """From w' = -λw - w³: w⁻² + 1/λ grows like exp(2λt)."""
    rate = np.maximum(LEVELS, 1e-14)
    return START * np.exp(-rate * t) / np.sqrt(1 - START**2 * np.expm1(-2 * rate * t) / rate)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """As if gradients took so long that ten thousand of them pay for compiling another solver."""
    monkeypatch.setattr(_switch, "_LONG", 1e4)


def run(loss=well, t_max=HORIZON, **options):
    kwargs = dict(loss=loss, rtol=1e-4, atol=1e-7, save_at=2) | options
    return gflow.integrate({"w": jnp.asarray(START)}, None, t_max, **kwargs)


@pytest.mark.parametrize("rtol", [1e-4, 1e-6])
def test_a_small_problem_that_turns_out_stiff_goes_on_with_a_stabilised_solver(rtol):
    loss, counted = counting(well)
    traj = run(loss, rtol=rtol, atol=1e-3 * rtol)
    jax.effects_barrier()
    assert traj.stats["solver"].startswith("Tsit5, then RKC3")
    assert "stability limits" in traj.stats["solver_reason"]
    assert traj.stats["gradients"] == counted[0]
    # Tsit5 alone is stable up to hλ = 3.3, with six gradients a step
    assert traj.stats["gradients"] < 0.2 * 6 * LEVELS[-1] * HORIZON / 3.3
    exact = well_at(HORIZON)
    assert np.linalg.norm(traj.model["w"] - exact) < 3 * rtol * np.linalg.norm(exact)


def test_what_is_recorded_does_not_change_when_it_does():
    few, many = run(), run(save_at=300)
    assert "then" in few.stats["solver"] and few.stats["solver_reason"] == many.stats["solver_reason"]
    assert np.array_equal(few.model["w"], many.model["w"]) and few.stats["steps"] == many.stats["steps"]
    exact = np.array([float(well({"w": jnp.asarray(well_at(t))}, None)) for t in many.t])
    np.testing.assert_allclose(many.loss, exact, rtol=1e-2)


def test_the_sharpness_that_decides_is_close_to_the_largest_eigenvalue():
    reason = run().stats["solver_reason"]
    step, found, product = map(
        float, re.findall(r"step of (\S+) times the sharpness (\S+) was (\S+),", reason)[0]
    )
    assert 0.6 * LEVELS[-1] < found < 1.01 * LEVELS[-1]  # from below
    assert product == pytest.approx(step * found, rel=0.02) and 2.5 <= product < 4.5


def test_a_horizon_that_is_not_long_and_a_solver_by_name_stay_with_it(monkeypatch):
    assert run(t_max=2.0).stats["solver"] == "Tsit5"
    assert run(t_max=20.0, solver=diffrax.Tsit5()).stats["solver"] == "Tsit5"
    # |w| has a kink that a stabilised solver would meet in every step
    kinked = lambda model, data: well(model, data) + 1e-3 * jnp.sum(jnp.abs(model["w"]))
    traj = run(kinked, throw=False, max_steps=2000)
    assert traj.stats["solver"] == "Tsit5" and traj.stats["steps"] == 2000
    monkeypatch.undo()
    assert run(t_max=20.0).stats["solver"] == "Tsit5"


def test_a_stop_after_the_change_and_an_endless_horizon():
    level = float(well({"w": jnp.asarray(well_at(150.0))}, None))
    traj = run(t_max=np.inf, save_at=[1.0, 10.0, 140.0], stop=gflow.stop.LossBelow(level))
    assert traj.status == "stopped" and traj.stats["solver"] == "Tsit5, then RKC3"
    assert traj.t[-1] == pytest.approx(150.0, rel=1e-2)


def test_it_goes_back_where_the_stiffness_is_over():
    # fast directions that follow a slowly moving target, stiff until b = 100
    def following(model, data):
        a, b = model["a"], model["b"]
        stiffness = 1 + 300 * jax.nn.sigmoid((100 - b) / 3)
        return 0.5 * stiffness * jnp.sum((a - jnp.sin(b + jnp.arange(4.0))) ** 2) - b

    start = {"a": jnp.ones(4), "b": jnp.array(0.3)}
    loss, counted = counting(following)
    kwargs = dict(rtol=1e-6, atol=1e-9, save_at=2)
    traj = gflow.integrate(start, None, 1500.0, loss=loss, **kwargs)
    jax.effects_barrier()
    assert traj.stats["gradients"] == counted[0]
    named = gflow.integrate(start, None, 1500.0, loss=following, solver=diffrax.Tsit5(), **kwargs)
    assert traj.stats["gradients"] < 1.1 * named.stats["gradients"]
    np.testing.assert_allclose(traj.model["b"], named.model["b"], rtol=1e-4)


def test_the_start_is_judged_by_the_tolerance_that_it_had():
    tiny = {"w": jnp.asarray(START) * 5e-7}
    with pytest.warns(UserWarning, match="atol = 1.0e-07 is not far below"):
        traj = gflow.integrate(tiny, None, HORIZON, loss=well, rtol=1e-4, atol=1e-7, save_at=2)
    assert traj.stats["solver"] == "Tsit5, then RKC3"


@pytest.mark.slow
def test_a_change_that_does_not_pay_is_taken_back(monkeypatch):
    monkeypatch.setattr(_switch, "_HALF", 0.0)
    loss, counted = counting(well)
    traj = run(loss, t_max=20.0, rtol=1e-6)
    jax.effects_barrier()
    assert traj.stats["radius_gradients"] > 0
    assert traj.stats["solver"].startswith("Tsit5, then RKC3, then Tsit5")
    assert "Tsit5 again, because RKC3 became dearer" in traj.stats["solver_reason"]
    assert traj.stats["gradients"] == counted[0]
    exact = well_at(20.0)
    assert np.linalg.norm(traj.model["w"] - exact) < 1e-5 * np.linalg.norm(exact)


def interrupted(monkeypatch, **options):
    """A run that Ctrl-C ends at its tenth record."""
    with monkeypatch.context() as patch:
        ctrl_c_at_record(patch, 10)
        partial = run(save_at=11, **options)
    assert partial.status == "interrupted"
    return partial


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_solver_that_it_had(tmp_path, monkeypatch):
    partial = interrupted(monkeypatch, checkpoint=tmp_path / "run.npz")
    assert partial.stats["solver"] == "Tsit5, then RKC3"
    resumed, whole = run(save_at=11, checkpoint=tmp_path / "run.npz"), run(save_at=11)
    assert resumed.status == "success" and np.array_equal(resumed.model["w"], whole.model["w"])
    for name in ("solver", "solver_reason", "steps", "rejected", "gradients"):
        assert resumed.stats[name] == whole.stats[name]


def test_a_checkpoint_of_a_run_with_a_solver_by_name_is_another(tmp_path, monkeypatch):
    file = tmp_path / "run.npz"
    interrupted(monkeypatch, t_max=2.0, checkpoint=file, solver=diffrax.Tsit5())
    with pytest.raises(ValueError, match="belongs to another run"):
        run(t_max=2.0, save_at=11, checkpoint=file)
