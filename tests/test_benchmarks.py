"""What the benchmarks share: numbers survive on disk, pairs are timed in alternation."""

import importlib.util
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "_report.py"


@pytest.fixture(scope="module")
def report():
    if not PATH.exists():
        pytest.skip("the benchmarks are not part of this distribution")
    spec = importlib.util.spec_from_file_location("_report", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_survive_the_file(report, tmp_path):
    results = {
        "number": 1 / 3,
        "numpy": np.float64(2.5),
        "count": np.int64(7),
        "flag": np.bool_(True),
        "array": np.arange(3),
        "jax": jnp.ones((2, 1)),
        "missing": None,
        "nested": [{"nan": np.nan, "inf": (1.0, -np.inf)}],
    }
    path = report.write("trial", results, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "trial.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["results"] == {
        "number": 1 / 3,
        "numpy": 2.5,
        "count": 7,
        "flag": True,
        "array": [0, 1, 2],
        "jax": [[1.0], [1.0]],
        "missing": None,
        "nested": [{"nan": None, "inf": [1.0, None]}],
    }
    assert report.stored("trial", tmp_path / "new" / "folder") == stored["results"]
    assert report.stored("trial", tmp_path / "elsewhere") == {}


def test_results_come_with_their_circumstances(report, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(PATH.with_name("trial.py")), "--quick"])
    stored = json.loads(report.write("trial", {}, tmp_path).read_text(encoding="utf-8"))
    assert stored["benchmark"] == "trial"
    assert stored["command"] == "python benchmarks/trial.py --quick"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", stored["date"])
    assert stored["x64"] is True  # as tests/conftest.py says
    assert isinstance(stored["backend"], str)
    machine = stored["machine"]
    assert machine["cpu"] and machine["cores"] >= 1 and machine["memory_gib"] > 0
    assert "accelerator" in machine
    packages = {"python", "jax", "jaxlib", "diffrax", "equinox", "optax", "numpy", "scipy", "gflow"}
    assert stored["versions"].keys() == packages | {"torch", "torchdiffeq"}


def test_the_median_of_pairs_ignores_what_slows_both_or_one(report):
    pairs = [(2.0, 1.0), (20.0, 10.0), (2.0, 1.0), (50.0, 1.0), (1.0, 5.0)]
    assert report.median_ratio(pairs) == 2.0
    assert report.median_ratio(pairs[:2] + [(4.0, 1.0), (8.0, 1.0)]) == 3.0


def test_pairs_are_warm_and_alternate(report, monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(report, "perf_counter", lambda: now[0])

    def taking(name, *durations):
        left = iter(durations)

        def function():
            calls.append(name)
            now[0] += next(left)

        return function

    a, b = taking("a", 100.0, 3.0, 6.0, 8.0), taking("b", 50.0, 1.0, 2.0, 2.0)
    assert report.paired_ratio(a, b, 3) == 3.0
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"


def test_tables_line_up(report):
    lines = report.table(
        ["what", "value"], [["α", 0.123456], ["count", 12345], ["none", None], ["met", True]]
    ).splitlines()
    assert lines[0] == "| what  | value |"
    assert lines[1] == "|-------|-------|"
    assert lines[2] == "| α     | 0.123 |"
    assert lines[3:] == ["| count | 12345 |", "| none  | -     |", "| met   | yes   |"]
