"""Every result of the literature that gflow reproduces, checked against references independent of gflow.

Each entry is a script of its own beside this one, with a claim, checks and a picture. The table is printed,
the results are written as JSON, one file an entry, the pictures as PNG, and the gallery of the documentation
is made from all JSON files found. The exit status is 1 if a check fails.

    python examples/catalogue/run.py [--quick] [--only A1 B14] [--processes 2] [--output docs]
"""

import argparse
import contextlib
import functools
import importlib
import json
import multiprocessing
import re
import sys
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
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


def perform(name: str, quick: bool, output: Path) -> tuple[str, bool]:
    """Runs and writes one entry; what to print of it, and whether its checks pass.

    An entry that raises fails, writes nothing, and doesn't keep others from being run.
    """
    jax.config.update("jax_enable_x64", True)
    began = perf_counter()
    try:
        entry = run(name, quick)
    except Exception:
        return f"\n{name}\n{traceback.format_exc()}", False
    seconds = perf_counter() - began
    write(name, entry, seconds, quick, output)
    shown = [(name, c.what, c.found, c.expected, c.passes) for c in entry.checks]
    head = f"\n{name} ({seconds:.1f} s): {entry.claim} {entry.source}\n"
    return head + _report.table(_HEADER, shown), entry.passes


def main() -> int:
    """Runs entries, prints the table, writes JSON, pictures and the gallery; 1 if a check fails."""
    parser = argparse.ArgumentParser(description="Results of the literature, checked.")
    parser.add_argument("--quick", action="store_true", help="smaller: about a minute an entry at most")
    parser.add_argument("--only", nargs="+", choices=names(), metavar="NAME", help="these entries alone")
    parser.add_argument("--processes", type=int, default=1, help="entries at a time")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder to write to")
    arguments = parser.parse_args()
    began, chosen, failed = perf_counter(), arguments.only or list(names()), []
    one = functools.partial(perform, quick=arguments.quick, output=arguments.output)
    with contextlib.ExitStack() as stack:
        each = map
        if arguments.processes > 1:
            spawn = multiprocessing.get_context("spawn")
            each = stack.enter_context(ProcessPoolExecutor(arguments.processes, spawn)).map
        for name, (text, passes) in zip(chosen, each(one, chosen), strict=True):
            print(text, flush=True)
            failed += [] if passes else [name]
    gallery(arguments.output)
    print(f"\n{len(chosen)} entries in {perf_counter() - began:.0f} s")
    print(f"failed: {', '.join(failed)}" if failed else "all checks pass")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
