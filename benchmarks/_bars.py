"""What the race of solvers shows: costs at equal error, and what was asked for beside what was measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from _race import DEFAULT, DENSE, EXPLICIT, GD, IN_FLOAT32, MISSING, OWN, RK4, TOLERANCES, TORCH
from _report import median_ratio, table

ERRORS = (1e-3, 1e-4, 1e-5, 2e-6)
UNKNOWN = "not measured"
# All that take steps of their own choice.
ADAPTIVE = (*OWN, *EXPLICIT, TORCH, *DENSE)

Rows = list[dict[str, Any]]


def of(rows: Rows, method: str) -> Rows:
    """The rows of one method."""
    return [row for row in rows if row["method"] == method]


def at_error(rows: Rows, method: str, error: float) -> float | None:
    """The cost of an error no larger than that: of a run, or interpolated in the logarithms between two.

    None if all runs are less accurate.
    """
    points = sorted((row["error"], row["cost"]) for row in of(rows, method) if row["error"])
    enough = [cost for found, cost in points if found <= error]
    if not enough:
        return None
    x, y = np.log(np.array(points)).T
    # beyond the last run `interp` gives that one
    return min(*enough, float(np.exp(np.interp(np.log(error), x, y))))


def single_cost(rows: Rows, method: str) -> dict[str, Any] | None:
    """The only row of gradient descent or Runge-Kutta."""
    return next(iter(of(rows, method)), None)


def best(rows: Rows, methods: Sequence[str], error: float) -> tuple[str, float] | None:
    """The cheapest of some methods."""
    costs = {name: at_error(rows, name, error) for name in methods}
    known = {name: cost for name, cost in costs.items() if cost is not None}
    return min(known.items(), key=lambda item: item[1]) if known else None


def radius_share(rows: Rows) -> float | None:
    """Share of the gradients of RKC2 and RKC3 that went into the spectral radius."""
    runs = of(rows, "RKC2") + of(rows, "RKC3")
    spent = sum(row["gradients"] for row in runs)
    return sum(row["radius_gradients"] for row in runs) / spent if runs else None


def delivered(rows: Rows) -> dict[float, float | None]:
    """Error / rtol of the default, None where it failed."""
    runs = [row for row in of(rows, DEFAULT) if row["rtol"] in TOLERANCES]
    return {row["rtol"]: row["error"] and row["error"] / row["rtol"] for row in runs}


def single_precision(rows: Rows) -> dict[float, float]:
    """Counts of the default in float32 by those in float64."""
    double = {row["rtol"]: row["cost"] for row in of(rows, DEFAULT)}
    return {row["rtol"]: row["cost"] / double[row["rtol"]] for row in of(rows, f"{DEFAULT}, float32")}


def bars(results: Mapping[str, Any]) -> list[list[Any]]:
    """Rows of what was asked, the limit, what was measured, and whether it is met; None where it wasn't."""
    problems = results["problems"]
    found: list[list[Any]] = []

    def judge(
        what: str, limit: float, names: tuple[str, ...], measured: Callable[..., float | str | None]
    ) -> None:
        if not all(name in problems for name in names):
            found.append([what, f"≤ {limit:.3g}", "not run", None])
            return
        value = measured(*(problems[name]["rows"] for name in names))
        if isinstance(value, str):
            met = None
        else:  # an error that no run of the default reached is a miss, unless few were asked for
            met = None if value is None and results["quick"] else value is not None and value <= limit
        found.append([what, f"≤ {limit:.3g}", value, met])

    def share(rival: str, error: float | None = 1e-3) -> Callable[[Rows], float | str | None]:
        def measured(rows: Rows) -> float | str | None:
            run = single_cost(rows, rival)
            goal = None if run is None else error or run["error"]
            if run is None or goal is None:
                return UNKNOWN
            return _ratio(at_error(rows, DEFAULT, goal), run["gradients"])

        return measured

    gd_limits = {"P1, T=400": 0.35, "P3, T=15": 0.3, "P3, T=150": 0.08, "P4, T=40": 0.5}
    gd_limits["P4, all 5000, T=40"] = 0.5
    for name, limit in gd_limits.items():
        judge(f"{name}: cost at 1e-3 / gradients of {GD}", limit, (name,), share(GD))
    for name, limit in {"P1, T=75": 1 / 8, "P1, T=400": 1 / 20}.items():
        judge(f"{name}: cost at 1e-3 / gradients of {RK4}", limit, (name,), share(RK4))
        judge(f"{name}: the same at the error of {RK4}", limit, (name,), share(RK4, None))
    for error, limit in ((1e-3, 3.0), (1e-5, 5.0)):
        for name, result in problems.items():
            bound = result["degree"][f"{error:.0e}"]
            tried = min(row["rtol"] for row in of(result["rows"], DEFAULT)) <= error
            by = lambda rows, bound=bound, error=error, tried=tried: (
                _ratio(at_error(rows, DEFAULT, error), bound) if tried else UNKNOWN
            )
            judge(f"{name}: cost at {error:.0e} / polynomial bound", limit, (name,), by)
    ends = ("P3, T=15", "P3, T=1500")
    growth = lambda *_: _exponent(problems, ends)
    judge("exponent of the cost at 1e-3 in ∫λ dt, P3 T=15 to 1500", 0.45, ends, growth)
    for name in ("P1, T=400", "P3, T=15"):
        for rival in EXPLICIT:
            by = lambda rows, r=rival: _beside(at_error(rows, DEFAULT, 2e-6), at_error(rows, r, 2e-6))
            judge(f"{name}: cost at 2e-6 / that of {rival}", 1 / 3, (name,), by)
    for name, result in problems.items():
        single = best(result["rows"], ADAPTIVE, 1e-3)
        if single is not None:
            by = lambda rows, cost=single[1]: _ratio(at_error(rows, DEFAULT, 1e-3), cost)
            judge(f"{name}: cost at 1e-3 / best single solver, {single[0]}", 1.2, (name,), by)
    tsit5 = lambda rows: _beside(at_error(rows, DEFAULT, 1e-3), at_error(rows, "Tsit5", 1e-3))
    judge("P2, T=100: cost at 1e-3 / that of Tsit5", 1.0, ("P2, T=100",), tsit5)
    for name, result in problems.items():
        if name.startswith("logistic"):  # whose limit attracts all that was wrong on the way
            continue
        ratios = list(delivered(result["rows"]).values())
        fine = all(ratio is not None and 0.1 <= ratio <= 3 for ratio in ratios)
        found.append([f"{name}: delivered error / rtol", "0.1 … 3", _span(ratios), fine])
    for name, result in problems.items():
        if radius_share(result["rows"]) is not None:
            judge(f"{name}: share of the spectral radius, RKC2 and RKC3", 0.12, (name,), radius_share)
    for name in IN_FLOAT32:
        apart = lambda rows: max((abs(r - 1) for r in single_precision(rows).values()), default=UNKNOWN)
        judge(f"{name}: counts in float32 / float64, largest distance from 1", 0.15, (name,), apart)
    return found + _timed(results)


def _timed(results: Mapping[str, Any]) -> list[list[Any]]:
    """The bars of wall and compile time."""
    what, limit = "P1: compile time / that of Tsit5 in diffeqsolve", "≤ 1"
    found: list[list[Any]] = [[what, limit, "not run", None]]
    if "compile" in results:
        value = median_ratio(results["compile"]["seconds"])
        found = [[what, limit, value, value <= 1]]
    for name, timed in results.get("wall", {}).items():
        for rival, run in timed["rivals"].items():
            ratio = median_ratio(run["seconds"])
            found.append([f"{name}: warm wall time / that of {rival}", "< 1", ratio, ratio < 1])
    return found


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _beside(mine: float | None, rival: float | None) -> float | str | None:
    """`mine` by that of a rival, which may not have been measured."""
    return UNKNOWN if rival is None else _ratio(mine, rival)


def _exponent(problems: Mapping[str, Any], names: tuple[str, str]) -> float | None:
    costs = [at_error(problems[name]["rows"], DEFAULT, 1e-3) for name in names]
    growth = _ratio(costs[1], costs[0])
    stiffness = [problems[name]["stiffness"] for name in names]
    return growth and float(np.log(growth) / np.log(stiffness[1] / stiffness[0]))


def _span(ratios: list[float | None]) -> str:
    known = [ratio for ratio in ratios if ratio is not None]
    failed = len(ratios) - len(known)
    span = f"{min(known):.2g} … {max(known):.2g}" if known else "-"
    return span + f", {failed} failed" * bool(failed)


def rendered(results: Mapping[str, Any]) -> str:
    """The tables that the docs show."""
    problems = results["problems"]
    names = [DEFAULT, *OWN, *EXPLICIT, TORCH]
    header = ["problem", "∫λ dt", "degree", *names, "dense Jacobian", GD, RK4]
    costs = [
        [name, r["stiffness"], r["degree"]["1e-03"], *(_shown(r["rows"], method) for method in names)]
        + [_best_dense(r["rows"])]
        + [_counted(single_cost(r["rows"], method)) for method in (GD, RK4)]
        for name, r in problems.items()
    ]
    parts = ["Cost at a relative error of 1e-3.", table(header, costs)]
    header = ["problem", *(f"{m}, {e:.0e}" for e in ERRORS[1:] for m in (DEFAULT, "best other"))]
    tighter = []
    for name, result in problems.items():
        rows, cells = result["rows"], [name]
        for error in ERRORS[1:]:
            cost, single = at_error(rows, DEFAULT, error), best(rows, ADAPTIVE, error)
            cells += [cost and round(cost), single and f"{single[1]:.0f} ({single[0]})"]
        tighter.append(cells)
    parts += ["Cost at smaller errors.", table(header, tighter)]
    header = ["problem", "solver", *(f"error / rtol at {rtol:.0e}" for rtol in TOLERANCES)]
    header += [f"float32 at {rtol:.0e}" for rtol in TOLERANCES[:4]]
    default = []
    for name, result in problems.items():
        rows = result["rows"]
        ratios, single = delivered(rows), single_precision(rows)
        solvers = _solvers([row["solver"] for row in of(rows, DEFAULT)])
        cells = [name, solvers, *(ratios.get(rtol) for rtol in TOLERANCES)]
        default.append(cells + [single.get(rtol) for rtol in TOLERANCES[:4]])
    caption = "The default: its error, and its cost in float32 by that in float64."
    parts += [caption, table(header, default)]
    if "wall" in results:
        header = ["problem", "rival", "error", "error of the rival", "wall time / that of the rival"]
        wall = [
            [name, rival, *run["errors"], median_ratio(run["seconds"])]
            for name, timed in results["wall"].items()
            for rival, run in timed["rivals"].items()
        ]
        parts += ["Wall time, warm and in turns.", table(header, wall)]
    parts += ["What was asked for.", table(["", "asked", "measured", "met"], bars(results))]
    return "\n\n".join(parts + _left_out(problems))


def _solvers(told: list[str]) -> str:
    """The solvers of several runs: each once, those of more than one change together."""
    changes = [run.count(", then ") for run in told]
    found = list(dict.fromkeys(run for run, n in zip(told, changes, strict=True) if n < 2))
    many = sorted({n for n in changes if n > 1})
    if many:
        span = f"{many[0]} to {many[-1]}" if len(many) > 1 else str(many[0])
        found.append(f"the two in turns, {span} changes")
    return "; ".join(found)


def _left_out(problems: Mapping[str, Any]) -> list[str]:
    """Sentences on what doesn't take part in a problem, but for dense Jacobians that are too large."""
    absent: dict[str, list[str]] = {}
    slow: dict[str, list[str]] = {}
    for name, result in problems.items():
        for method, why in result["left_out"].items():
            if why == MISSING:
                absent.setdefault(method, []).append(name)
            elif why.startswith("came only"):
                slow.setdefault(method, []).append(f"{name} ({why})")
    return [
        *(f"Left out, because it was not installed: {m} on {'; '.join(on)}." for m, on in absent.items()),
        *(f"Left out, because its time was up: {m} on {'; '.join(on)}." for m, on in slow.items()),
    ]


def _shown(rows: Rows, method: str) -> str | None:
    """The cost at 1e-3, or one counted over part of the horizon, marked so."""
    cost = at_error(rows, method, 1e-3)
    if cost is not None:
        return f"{cost:.0f}"
    return _counted(next((r for r in of(rows, method) if r["note"].startswith("counted")), None), "cost")


def _counted(row: dict[str, Any] | None, what: str = "gradients") -> str | None:
    """A count, marked where the method didn't run to the end."""
    if row is None:
        return None
    return ("" if row["error"] is not None else "~") + f"{row[what]:.0f}"


def _best_dense(rows: Rows) -> str | None:
    dense = best(rows, DENSE, 1e-3)
    return dense and f"{dense[1]:.0f} ({dense[0].removeprefix('scipy ')})"
