"""The default of small problems and tight tolerances: Tsit5, and RKC3 from where stability limits it."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import counting

import gflow
from gflow import _switch
from gflow._stepper import Run

LEVELS = np.append(0.0, np.geomspace(0.05, 300.0, 39))
START = np.random.default_rng(0).normal(size=40)
HORIZON = 200.0


def well(model, data):
    return 0.5 * jnp.sum(jnp.asarray(LEVELS) * model["w"] ** 2) + 0.25 * jnp.sum(model["w"] ** 4)


def well_at(t):
    """From w' = -λw - w³: w⁻² + 1/λ grows like exp(2λt)."""
    rate = np.maximum(LEVELS, 1e-14)
    return START * np.exp(-rate * t) / np.sqrt(1 - START**2 * np.expm1(-2 * rate * t) / rate)


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
    found = float(reason.split("times the sharpness ")[1].split()[0])
    assert 0.8 * LEVELS[-1] < found < 1.01 * LEVELS[-1]


def test_a_horizon_that_is_not_long_and_a_solver_by_name_stay_with_it():
    assert run(t_max=2.0).stats["solver"] == "Tsit5"
    assert run(t_max=20.0, solver=diffrax.Tsit5()).stats["solver"] == "Tsit5"
    # |w| has a kink that a stabilised solver would meet in every step
    kinked = lambda model, data: well(model, data) + 1e-3 * jnp.sum(jnp.abs(model["w"]))
    traj = run(kinked, throw=False, max_steps=2000)
    assert traj.stats["solver"] == "Tsit5" and traj.stats["steps"] == 2000


@pytest.mark.slow
def test_a_change_that_does_not_pay_is_taken_back(monkeypatch):
    monkeypatch.setattr(_switch, "_DEARER", 0.0)
    loss, counted = counting(well)
    traj = run(loss, t_max=20.0, rtol=1e-6)
    jax.effects_barrier()
    assert traj.stats["solver"].startswith("Tsit5, then RKC3, then Tsit5")
    assert "Tsit5 again, because RKC3 became dearer" in traj.stats["solver_reason"]
    assert traj.stats["gradients"] == counted[0]
    exact = well_at(20.0)
    assert np.linalg.norm(traj.model["w"] - exact) < 1e-5 * np.linalg.norm(exact)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_solver_that_it_had(tmp_path, monkeypatch):
    record = Run._record

    def interrupting(self, position, t):
        if len(self.t) == 9 and not hasattr(self, "was_interrupted"):
            self.was_interrupted = True
            raise KeyboardInterrupt
        return record(self, position, t)

    monkeypatch.setattr(Run, "_record", interrupting)
    partial = run(save_at=11, checkpoint=tmp_path / "run.npz")
    monkeypatch.undo()
    assert partial.status == "interrupted" and partial.stats["solver"] == "Tsit5, then RKC3"
    resumed, whole = run(save_at=11, checkpoint=tmp_path / "run.npz"), run(save_at=11)
    assert resumed.status == "success" and np.array_equal(resumed.model["w"], whole.model["w"])
    for name in ("solver", "solver_reason", "steps", "rejected", "gradients"):
        assert resumed.stats[name] == whole.stats[name]
