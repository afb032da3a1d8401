"""Every entry of the catalogue in its quick form, and the runner that prints them."""

import json
import subprocess
import sys

import pytest
import run
from entry import Check, Entry, above, below, close, holds


@pytest.mark.slow
@pytest.mark.parametrize("name", run.names())
def test_the_entry_holds(name, tmp_path):
    # A process of its own, as a reader runs it: the type checks of the tests would refuse models of an
    # ensemble, which don't have the shapes of one member.
    command = [sys.executable, run.__file__, "--quick", "--only", name, "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


def test_checks():
    assert below("x", 1.0, 1.0).passes and not below("x", 1.1, 1.0).passes
    assert above("x", 1.0, 1.0).passes and not above("x", 0.9, 1.0).passes
    assert close("x", 1.01, 1.0, 0.011).passes and not close("x", 0.98, 1.0, 0.011).passes
    assert holds("x", True).passes and not holds("x", False).passes
    for kind in ("below", "above", "close"):
        assert not Check("x", float("nan"), kind, 1.0, 1.0).passes
    assert (close("x", 2.99881, 3.0, 0.03).found, close("x", 3.0, 3.0, 0.03).expected) == (
        "2.999",
        "3 ± 0.03",
    )
    assert below("x", 1.23456e-9, 1e-7).found == "1.23e-09" and below("x", 0, 1e-7).expected == "≤ 1e-07"


@pytest.mark.parametrize("measured, status", [(0.5, 0), (1.5, 1)])
def test_the_runner_writes_and_tells(measured, status, tmp_path, monkeypatch, capsys):
    entry = Entry("A claim.", "A paper", [below("a number", measured, 1.0)], lambda figure: figure.subplots())
    monkeypatch.setattr(run, "run", lambda name, quick: entry)
    monkeypatch.setattr(sys, "argv", ["run.py", "--quick", "--only", "A1", "--output", str(tmp_path)])
    assert run.main() == status
    stored = json.loads((tmp_path / "catalogue" / "A1.json").read_text(encoding="utf-8"))
    assert stored["results"]["claim"] == "A claim." and stored["machine"] and stored["versions"]
    (check,) = stored["results"]["checks"]
    assert check["measured"] == measured and check["pass"] is (status == 0)
    assert (tmp_path / "images" / "catalogue" / "A1.png").stat().st_size > 1000
    page = (tmp_path / "gallery.md").read_text(encoding="utf-8")
    assert "## A1" in page and "a number" in page and f"{1 - status} of 1 entries" in page
    assert ("failed: A1" in capsys.readouterr().out) is bool(status)


def test_an_entry_that_raises_fails_alone(tmp_path, monkeypatch, capsys):
    good = Entry("A claim.", "A paper", [below("a number", 0.5, 1.0)], lambda figure: figure.subplots())

    def one(name, quick):
        if name == "A1":
            raise ValueError("no such matrix")
        return good

    monkeypatch.setattr(run, "run", one)
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "A1", "A2", "--output", str(tmp_path)])
    assert run.main() == 1
    printed = capsys.readouterr().out
    assert "ValueError: no such matrix" in printed and "failed: A1\n" in printed
    assert [path.stem for path in (tmp_path / "catalogue").iterdir()] == ["A2"]


def test_entries_come_in_their_order():
    names = [*run.names()]
    assert names.index("A1") == 0 and len(names) == len({*names})
    numbers = [int(name[1:].rstrip("abcCB")) for name in names if name[0] == "B"]
    assert numbers == sorted(numbers)
