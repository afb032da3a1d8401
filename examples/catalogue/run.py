"""Every result of the literature that gflow reproduces, checked against references independent of gflow.

Each entry is a script of its own beside this one, with a claim, checks and a picture. The table is printed,
the results are written as JSON, one file an entry, the pictures as PNG, and the gallery of the documentation
is made from all JSON files found. The exit status is 1 if a check fails.

    python examples/catalogue/run.py [--quick] [--only A1 B14] [--output docs]
"""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path += [str(HERE), str(ROOT / "benchmarks")]

import _report  # noqa: E402
from entry import Entry  # noqa: E402

_HEADER = ("entry", "measured", "value", "reference", "pass")


def names() -> dict[str, str]:
    """The entries in the catalogue's order, with their modules: `a1_toy_model.py` holds A1."""
    modules = {path.stem.split("_")[0].upper(): path.stem for path in HERE.glob("[ab][0-9]*.py")}
    return {name: modules[name] for name in sorted(modules, key=_order)}


def run(name: str, quick: bool) -> Entry:
    """Runs one entry."""
    return importlib.import_module(names()[name]).run(quick)


def write(name: str, entry: Entry, seconds: float, quick: bool, output: Path) -> None:
    """Writes `output/catalogue/NAME.json` and the picture `output/images/catalogue/NAME.png`."""
    checks = [vars(c) | {"expected": c.expected, "found": c.found, "pass": c.passes} for c in entry.checks]
    results = {"claim": entry.claim, "source": entry.source, "quick": quick, "seconds": round(seconds, 1)}
    _report.write(name, results | {"checks": checks, "pass": entry.passes}, output / "catalogue")
    figure = Figure(figsize=(8, 3), layout="constrained")
    entry.draw(figure)
    picture = output / "images" / "catalogue" / f"{name}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def rows(name: str, checks: Iterable[dict[str, Any]]) -> list[tuple[str, str, str, str, bool]]:
    """The checks of an entry as rows of the table."""
    return [(name, c["what"], c["found"], c["expected"], c["pass"]) for c in checks]


def gallery(output: Path) -> None:
    """Makes `output/gallery.md` from the JSON files in `output/catalogue`."""
    files = sorted((output / "catalogue").glob("*.json"), key=lambda path: _order(path.stem))
    stored = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    results = {name: content["results"] for name, content in stored.items()}
    passed = sum(r["pass"] for r in results.values())
    lines = [
        "# Gallery",
        "",
        f"Results of the literature, run with gflow: {passed} of {len(results)} entries pass all their",
        "checks. References are closed forms, quadrature, and solvers that know nothing of gflow",
        "(`examples/catalogue/references.py`); where data are random, the worst of three seeds is given.",
        "`python examples/catalogue/run.py` writes this page from the files in `docs/catalogue/`, which also",
        "hold machine, versions and date.",
    ]
    for name, result in results.items():
        lines += ["", f"## {name}", "", f"{result['claim']} *{result['source']}*", ""]
        # marked, so that other pages can show the table
        table = _report.table(_HEADER[1:], [row[1:] for row in rows(name, result["checks"])])
        lines += [f"<!-- --8<-- [start:{name}] -->", "", table, "", f"<!-- --8<-- [end:{name}] -->", ""]
        lines += [f"![{name}](images/catalogue/{name}.png)"]
    (output / "gallery.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _order(name: str) -> tuple[str, int, str]:
    found = re.fullmatch(r"([A-Z])(\d+)(.*)", name)
    assert found is not None, f"{name} is no entry"
    return found[1], int(found[2]), found[3]


def main() -> int:
    """Runs entries, prints the table, writes JSON, pictures and the gallery; 1 if a check fails."""
    parser = argparse.ArgumentParser(description="Results of the literature, checked.")
    parser.add_argument("--quick", action="store_true", help="smaller: about 15 seconds an entry at most")
    parser.add_argument("--only", nargs="+", choices=names(), metavar="NAME", help="these entries alone")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder to write to")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    failed = []
    for name in arguments.only or names():
        began = perf_counter()
        entry = run(name, arguments.quick)
        seconds = perf_counter() - began
        write(name, entry, seconds, arguments.quick, arguments.output)
        print(f"\n{name} ({seconds:.1f} s): {entry.claim} {entry.source}")
        shown = [(name, c.what, c.found, c.expected, c.passes) for c in entry.checks]
        print(_report.table(_HEADER, shown), flush=True)
        failed += [] if entry.passes else [name]
    gallery(arguments.output)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall checks pass")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
