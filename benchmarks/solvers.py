"""The race of solvers: gradients spent for the error reached, on stiff and nonstiff gradient flows.

    python benchmarks/solvers.py [--quick] [--only PROBLEM ...] [--own] [--times [PROBLEM ...]]
                                 [--cache DIR] [--output DIR]

Every problem has a reference, cross-checked by a second method and kept in the cache. Errors are
‖θ(T) − reference‖ / ‖reference‖. Costs are gradients, with everything counted that a method spends on
the curvature, Hessian-vector products at their measured price in gradients: of one by itself, or of a
column of a Jacobian that is made at once. `degree` is the smallest degree of a polynomial that can damp the
same stiffness ∫λ dt in one step: a bound for all explicit methods on a linear problem. Counts of gradient
descent and Runge-Kutta are without their products, counts with ~ follow ∫λ dt where a run would take minutes.
torchdiffeq takes part if it is installed, `pip install -e ".[race]"`.

`--only` measures some problems and puts them into the stored results, which say of each when and where it was
measured; `--own` measures gflow's solvers and leaves their rivals as they are stored; `--times` measures wall
and compile times, beside the runs stored.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import jax
from _bars import rendered
from _race import measure
from _race_pictures import draw_errors, draw_stiffness
from _race_times import WALL, compile_pairs, first_call, wall
from _report import circumstances, parser, stored, write
from _stiff import Stiff, problems

QUICK = "P3, T=15"


def times(cases: dict[str, Stiff], results: dict[str, Any], chosen: list[str], processes: int) -> None:
    """Puts wall times of the chosen problems, or of all and compile times, into the results."""
    measured, device = results["problems"], jax.devices()[0]
    place = "" if device.platform == "cpu" else f", on an {device.device_kind}"
    found = results.setdefault("wall", {})
    for name in chosen or WALL:
        if name in measured:
            runs = wall(cases[name], measured[name]["rows"])
            found[name + place] = {"measured": circumstances(), "rivals": runs}
    if not chosen:
        results["compile"] = {"measured": circumstances(), "seconds": compile_pairs(__file__, processes)}


def main() -> None:
    """Runs the race, prints the tables and writes the files."""
    jax.config.update("jax_enable_x64", True)
    warnings.filterwarnings("ignore", message="the loss rose")
    if sys.argv[1:2] == ["--first-call"]:  # in a fresh process
        print(first_call(sys.argv[2]))
        return
    cases = {case.name: case for case in problems()}
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", metavar="PROBLEM", choices=cases, help="into what is stored")
    options.add_argument("--own", action="store_true", help="gflow's solvers alone, into what is stored")
    what = "wall times, of all and compile times if none is named, into what is stored"
    options.add_argument("--times", nargs="*", metavar="PROBLEM", choices=[*WALL], help=what)
    cache = Path.home() / ".cache" / "gflow-references"
    options.add_argument("--cache", type=Path, default=cache, help="folder of the references")
    arguments = options.parse_args()
    if arguments.quick:
        cases = {QUICK: cases[QUICK]}
    kept = arguments.only is not None or arguments.own or arguments.times is not None
    chosen = arguments.only or (cases if arguments.own else ())
    results = stored("solvers", arguments.output) if kept else {}
    results = {"quick": arguments.quick, "problems": {}} | results
    for name, case in cases.items():
        if name in chosen or not kept:
            before = results["problems"].get(name) if arguments.own else None
            results["problems"][name] = measure(case, arguments.cache, arguments.quick, before)
            order = [key for key in cases if key in results["problems"]]
            results["problems"] = {key: results["problems"][key] for key in order}
            write("solvers", results, arguments.output)  # after each, so that nothing is lost
            jax.clear_caches()  # none of its programs comes again
    if arguments.times is not None:
        times(cases, results, arguments.times, 1 if arguments.quick else 5)
    path = write("solvers", results, arguments.output)
    text = rendered(results)
    print(f"\n{text}\n")
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    draw_errors(results["problems"], path.with_suffix(".png"))
    draw_stiffness(results["problems"], path.with_name("solvers_stiffness.png"))
    print(f"{path} written")


if __name__ == "__main__":
    main()
