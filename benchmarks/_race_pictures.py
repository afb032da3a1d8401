"""The pictures of the race of solvers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _bars import Rows, at_error, best, of
from _race import DEFAULT, DENSE, EXPLICIT, GD, OWN, RK4, TORCH

BEST_DENSE = "best with a dense Jacobian"
# Told apart by marker and line as well as by colour.
STYLES: dict[str, dict[str, Any]] = {
    DEFAULT: {"color": "black", "lw": 5, "alpha": 0.25, "marker": "none", "ls": "-"},
    "RKC2": {"color": "C0", "marker": "o", "ls": "-"},
    "RKC3": {"color": "C1", "marker": "s", "ls": "-"},
    "EXPRB42": {"color": "C2", "marker": "D", "ls": "--"},
    "EXPRB43": {"color": "C6", "marker": "P", "ls": "--"},
    "Tsit5": {"color": "C3", "marker": "x", "ls": ":"},
    "Dopri8": {"color": "C4", "marker": "+", "ls": ":"},
    TORCH: {"color": "C5", "marker": "*", "ls": ":"},
    BEST_DENSE: {"color": "C8", "marker": "h", "ls": "-."},
    GD: {"color": "dimgrey", "marker": "v", "ls": "none"},
    RK4: {"color": "dimgrey", "marker": "^", "ls": "none"},
}
METHODS = (DEFAULT, *OWN, *EXPLICIT, TORCH, GD, RK4)


def style(method: str) -> dict[str, Any]:
    """How a method is drawn."""
    return {"ms": 4, "lw": 1, **STYLES.get(method, {"color": "C7", "marker": "h", "ls": "-."})}


def draw_errors(problems: Mapping[str, Any], path: Path) -> None:
    """Error against cost, a panel for each problem."""
    import matplotlib.pyplot as plt

    columns = min(len(problems), 4)
    lines = -(-len(problems) // columns)
    size = (3.2 * columns, 2.7 * lines + 0.6)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat[len(problems) :]:
        ax.set_axis_off()
    handles: dict[str, Any] = {}
    for ax, (name, result) in zip(axes.flat, problems.items(), strict=False):
        dense = best(result["rows"], DENSE, 1e-3)
        runs = {method: of(result["rows"], method) for method in METHODS}
        runs[BEST_DENSE] = of(result["rows"], dense[0]) if dense else []
        for method, rows in runs.items():
            count = "gradients" if method in (GD, RK4) else "cost"
            points = sorted((r["error"], r[count]) for r in rows if r["error"])
            if points:
                errors, costs = zip(*points, strict=True)
                (handles[method],) = ax.loglog(costs, errors, label=method, **style(method))
        ax.set_title(name, fontsize=9)
        ax.tick_params(labelsize=8)
        _tidy(ax.xaxis)
    figure.supxlabel("cost in gradients", fontsize=10)
    figure.supylabel("relative error of θ(T)", fontsize=10)
    _legend(figure, handles)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_stiffness(problems: Mapping[str, Any], path: Path) -> None:
    """Cost at an error of 1e-3 against ∫λ dt; the problem P3 is joined by lines."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    handles: dict[str, Any] = {}
    for method in METHODS:
        points = [(r["stiffness"], _cost(r["rows"], method), name) for name, r in problems.items()]
        known = sorted((x, y, name) for x, y, name in points if y is not None)
        if not known:
            continue
        looks = style(method) | {"ls": "none"}
        if method == DEFAULT:
            looks |= {"marker": "o", "ms": 9}
        (handles[method],) = ax.loglog(*np.array([p[:2] for p in known]).T, **looks)
        same = np.array([p[:2] for p in known if p[2].startswith("P3, T")])
        if len(same) > 1:
            line = ":" if method in (GD, RK4) else style(method)["ls"]
            ax.loglog(*same.T, **style(method) | {"marker": "none", "ls": line})
    degrees = sorted((r["stiffness"], r["degree"]["1e-03"]) for r in problems.values())
    (handles["polynomial bound"],) = ax.loglog(*np.array(degrees).T, color="black", ls="-.", lw=1)
    ax.set_xlabel("stiffness ∫λ dt")
    ax.set_ylabel("cost at a relative error of 1e-3, in gradients")
    _legend(figure, handles)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _tidy(axis: Any) -> None:
    """Labels at powers of ten alone, or between them as well where only one power would be in view."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if np.floor(np.log10(high)) - np.ceil(np.log10(low)) < 1:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())  # within one decade they would overlap


def _cost(rows: Rows, method: str) -> float | None:
    if method in (GD, RK4):
        return next((row["gradients"] for row in of(rows, method)), None)
    return at_error(rows, method, 1e-3)


def _legend(figure: Any, handles: Mapping[str, Any]) -> None:
    labels = {DEFAULT: "the default", TORCH: "dopri5 (torchdiffeq)"}
    names = [labels.get(method, method) for method in handles]
    figure.legend(list(handles.values()), names, loc="outside right upper", fontsize=8, frameon=False)
