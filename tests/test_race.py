"""What the race of solvers counts and concludes, on numbers known beforehand."""

import importlib
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import gflow

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    if not FOLDER.exists():
        pytest.skip("the benchmarks are not part of this distribution")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


def row(method, cost, error, **more):
    return {
        "method": method,
        "rtol": None,
        "cost": cost,
        "gradients": cost,
        "error": error,
        "note": "",
    } | more


def test_costs_are_interpolated_in_the_logarithms():
    bars = importlib.import_module("_bars")
    rows = [row("a", 10 * error**-0.25, error) for error in (1e-2, 1e-3, 1e-6)] + [row("b", 1.0, 1e-9)]
    assert bars.at_error(rows, "a", 1e-5) == pytest.approx(10 * 1e-5**-0.25)
    assert bars.at_error(rows, "a", 1e-7) is None  # no run is so accurate
    assert bars.at_error(rows, "a", 1.0) == pytest.approx(10 * 1e-2**-0.25)
    assert bars.at_error([row("a", 1.0, None)], "a", 1.0) is None  # a run that failed
    rows = [row("a", 9.0, 1e-2), row("a", 8.0, 1e-3), row("a", 7.0, 1e-5)]
    assert bars.at_error(rows, "a", 1e-3) == pytest.approx(7.0)  # more accurate, and cheaper


def test_bars_are_judged_from_the_rows():
    bars = importlib.import_module("_bars")

    def problem(stiffness, cost):
        mine = [row("default", cost * k, e, rtol=e, solver="x") for k, e in ((1, 1e-3), (4, 2e-6))]
        mine += [
            row(name, 9000, 1e-3, radius_gradients=part) for name, part in (("RKC2", 600), ("RKC3", 1200))
        ]
        rivals = [row("GD at 2/λ", 500, 0.1), row("RK4 at 1/λ", 2000, 1e-3), row("Tsit5", 3000, 2e-6)]
        degree = {"1e-03": 40, "1e-05": 60}
        return {"rows": mine + rivals, "stiffness": stiffness, "degree": degree, "left_out": {}}

    problems = {
        "P3, T=15": problem(1e3, 160),
        "P3, T=1500": problem(1e5, 1600),
        "P1, T=75": problem(1e2, 200),
    }
    found = {what: (value, met) for what, _, value, met in bars.bars({"quick": False, "problems": problems})}

    def judged(what, value, met):
        assert found[what] == (pytest.approx(value), met)

    judged("P3, T=15: cost at 1e-3 / gradients of GD at 2/λ", 0.32, False)
    judged("P1, T=75: cost at 1e-3 / gradients of RK4 at 1/λ", 0.1, True)
    judged("P3, T=15: cost at 1e-03 / polynomial bound", 4, False)
    judged("exponent of the cost at 1e-3 in ∫λ dt, P3 T=15 to 1500", 0.5, False)
    judged("P3, T=15: cost at 2e-6 / that of Tsit5", 640 / 3000, True)
    judged("P3, T=15: share of the spectral radius, RKC2 and RKC3", 0.1, True)
    assert found["P1, T=400: cost at 1e-3 / gradients of GD at 2/λ"] == ("not run", None)
    assert found["P3, T=15: delivered error / rtol"] == ("1 … 1", True)


def test_the_bound_is_the_degree_of_a_polynomial():
    degree = importlib.import_module("_race").degree
    stiffness = 40.0
    x = np.cos(np.linspace(0, np.pi, 2001))
    series = np.polynomial.chebyshev.chebinterpolate(lambda x: np.exp(-stiffness * (1 + x) / 2), 200)

    def error(n):  # of the Chebyshev series of exp(-x) after n terms
        tail = np.r_[np.zeros(n + 1), series[n + 1 :]]
        return np.max(np.abs(np.polynomial.chebyshev.chebval(x, tail)))

    found = degree(stiffness, 1e-5)
    assert error(found) <= 1e-5 < error(found - 1)


@pytest.mark.slow
def test_steps_of_a_share_of_the_sharpness():
    march = importlib.import_module("_rivals").march
    loss = lambda model, data: 0.5 * jnp.sum(data * model["w"] ** 2)
    problem = gflow.Problem({"w": jnp.array([1.0, 1.0])}, jnp.array([4.0, 0.0]), loss)
    factor = sum((-0.5) ** k / math.factorial(k) for k in range(5))
    run = march(problem, 1.0, 0.5, 4, 1000, 1)
    assert run.until == 1 and run.gradients == 32 and run.hvps > 0
    np.testing.assert_allclose(run.params, [factor**8, 1], rtol=0.05)  # λ is followed to a per cent
    assert march(problem, 1.0, 0.5, 4, 12, 1).until == pytest.approx(3 / 8, rel=0.05)


def test_a_reference_is_that_of_the_problem(monkeypatch, tmp_path):
    module, stiff = importlib.import_module("_reference"), importlib.import_module("_stiff")
    loss = lambda model, data: 0.5 * jnp.sum(data * model["w"] ** 2)
    case = stiff.Stiff("a, b", "", gflow.Problem({"w": jnp.ones(2)}, jnp.array([4.0, 1.0]), loss), 1.0)
    made = []

    def computed(case):
        made.append(case)
        params, times = np.array([0.5, 0.5]), np.linspace(0, case.horizon, 1001)
        return module.Reference(params, times, 2 * times, {"losses": module._losses(case, params)})

    monkeypatch.setattr(module, "_computed", computed)
    first = module.reference(case, tmp_path)
    assert first.stiffness == pytest.approx(1) and first.time_at(0.25) == pytest.approx(0.5)
    again = module.reference(case, tmp_path)
    assert len(made) == 1 and np.array_equal(first.params, again.params)
    module.reference(case._replace(horizon=2.0), tmp_path)
    other = gflow.Problem({"w": jnp.ones(2)}, jnp.array([5.0, 1.0]), loss)
    module.reference(case._replace(problem=other), tmp_path)
    assert len(made) == 3
