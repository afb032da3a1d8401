"""Pictures of trajectories and comparisons, good enough for a paper. Needs matplotlib, imported here
only when a picture is drawn.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gflow._compare import Comparison
from gflow._trajectory import Trajectory
from gflow.stability import AbstractOptimizer
from gflow.stability import edge as statistics
from gflow.stability._edge import largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["comparison", "edge", "trajectory"]

# Told apart by lightness and by dashes, so that a greyscale print still shows which is which.
_FLOW = {"color": "#0b3c5d", "linewidth": 1.8, "linestyle": "-"}
_DESCENT = {"color": "#e07b39", "linewidth": 1.1, "linestyle": "-", "alpha": 0.95}
_LIMIT = {"color": "0.25", "linewidth": 1.0, "linestyle": (0, (6, 3))}
_MARKS = {"crossing": (0, (1, 1.5)), "onset": (0, (4, 1.5, 1, 1.5))}
_DASHES = ["-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1))]
_SYMBOLS = {
    "loss": r"loss $L(\theta)$",
    "log_loss": r"$\log L(\theta)$",
    "gradient_norm": r"gradient norm $\|\nabla L\|$",
    "sharpness": r"sharpness $\lambda_{\max}(\nabla^2 L)$",
    "sharpness_residual": r"residual $\|Hv-\lambda v\|$",
    "sharpness_hvps": "Hessian-vector products",
    "preconditioned_sharpness": "preconditioned\n" + r"$\lambda_{\max}(P^{-1/2}\nabla^2 L\,P^{-1/2})$",
    "preconditioned_sharpness_residual": r"residual $\|Hv-\lambda v\|$",
    "oscillation": "oscillation\n" + r"$\langle v, \theta_{k+1}-\theta_k\rangle/2$",
    "midpoint_loss": r"midpoint loss $L(\bar\theta)$",
    "midpoint_sharpness": r"midpoint $\lambda_{\max}$",
    "preconditioned_sharpness_hvps": "Hessian-vector products",
}


def comparison(both: Comparison) -> "Figure":
    """Loss, sharpness with the threshold, and distance of flow and descent against t = ηk.

    Where the threshold is one on the preconditioned sharpness, that of the descent has a panel of its own.
    The crossing (sharpness above the threshold) and the onset (the loss begins to rise) are marked by
    vertical lines where they occur.

    **Returns:** the matplotlib figure; `figure.savefig("picture.pdf")` writes it.

    **Raises:** `ValueError` for anything but a comparison.
    """
    if not isinstance(both, Comparison):
        raise ValueError(
            f"both must be what gflow.compare returns, but a {type(both).__name__} came; a single run is "
            "drawn by gflow.plot.trajectory."
        )
    preconditioned = both.quantity != "sharpness"
    figure, (loss, sharpness, *other, distance) = _stack(3 + preconditioned)
    for path, style, label in (
        (both.flow, _FLOW, "gradient flow"),
        (both.descent, _DESCENT, rf"descent, $\eta = {both.learning_rate:g}$"),
    ):
        loss.plot(path.t, path.loss, label=label, **style)
        sharpness.plot(path.t, path["sharpness"], **style)
    common = both.descent.t[: len(both.distance)]
    apart = both.distance > 0  # they start together
    distance.plot(common[apart], both.distance[apart], color="black", linewidth=1.4)
    for axes in (loss, distance):
        _logarithmic(axes)
    loss.set_ylabel(_SYMBOLS["loss"])
    sharpness.set_ylabel(_SYMBOLS["sharpness"])
    sharpness.set_ylim(bottom=0)
    distance.set_ylabel("distance\n" + r"$\|\theta_k-\theta\|\,/\,\|\theta-\theta_0\|$")
    distance.set_xlabel(r"time $t = \eta k$")
    marks = {}
    for axes in other:
        axes.plot(both.descent.t, both.descent[both.quantity], **_DESCENT)
        axes.set_ylabel(_SYMBOLS[both.quantity])
        axes.set_ylim(bottom=0)
    if both.threshold is not None:
        _threshold(other[0] if preconditioned else sharpness, both.descent.t, both.threshold)
        marks = {"crossing": both.crossing, "onset": both.onset}
    for name, step in marks.items():
        if step is None:
            continue
        for axes in (loss, sharpness, *other, distance):
            axes.axvline(
                step * both.learning_rate,
                color="0.45",
                linewidth=1.0,
                linestyle=_MARKS[name],
                label=f"{name}, step {step}" if axes is loss else None,
            )
    _legend(figure, (loss, sharpness, *other))
    return figure


def edge(runs: Mapping[str, tuple[Trajectory, AbstractOptimizer]]) -> "Figure":
    """Descents at the edge of stability, one row each: the loss, and the sharpness over its threshold.

    Both are drawn against the step k, the loss at every step; the sharpness is cut off at twice its
    threshold, which Adam's exceeds in its first steps. What was recorded midway between iterates by
    [`gflow.observe.Oscillation`][] is drawn as well. Crossing and onset are vertical lines.

    **Arguments:** `runs` is a dictionary from the titles of the rows to pairs `(trajectory, optimizer)`, as
    for [`gflow.stability.edge`][].

    **Returns:** the matplotlib figure.

    **Raises:** what [`gflow.stability.edge`][] raises; `ValueError` if there is no run, or no dictionary.
    """
    import matplotlib.pyplot as plt

    if not isinstance(runs, Mapping) or not runs:
        raise ValueError(
            "runs must be a dictionary from titles to pairs (trajectory, optimizer), with at least one, but "
            f"{'an empty one' if isinstance(runs, Mapping) else f'a {type(runs).__name__}'} came."
        )
    for title, run in runs.items():
        match run:
            case (Trajectory(), AbstractOptimizer()):
                continue
        kinds = (
            ", ".join(type(part).__name__ for part in run) if isinstance(run, tuple) else type(run).__name__
        )
        raise ValueError(
            f"runs must hold pairs (trajectory, optimizer), the optimizer one of gflow.stability, but "
            f"{title!r} holds {kinds}."
        )
    figure, rows = plt.subplots(
        len(runs), 2, squeeze=False, figsize=(7.0, 0.9 + 1.6 * len(runs)), layout="constrained"
    )
    for (loss, ratio), (title, (path, optimizer)) in zip(rows, runs.items(), strict=True):
        seen = statistics(path, optimizer)
        assert path.step is not None and path.step_loss is not None  # or there were no statistics
        threshold = optimizer.threshold(path.step)
        loss.plot(path.step_loss, label="iterates", **_DESCENT)
        ratio.plot(path.step, largest(path[optimizer.quantity]) / threshold, **_DESCENT)
        if "midpoint_sharpness" in path.records:
            loss.plot(path.step, path["midpoint_loss"], label="midway between iterates", **_FLOW)
            ratio.plot(path.step, path["midpoint_sharpness"] / threshold, **_FLOW)
        ratio.axhline(1, label="threshold", **_LIMIT)
        for axes in (loss, ratio):
            _tidy(axes)
            for name in ("crossing", "onset"):
                step = getattr(seen, name)
                if step is not None:
                    style = {"color": "0.45", "linewidth": 1.0, "linestyle": _MARKS[name]}
                    axes.axvline(step, label=name, **style)
        _logarithmic(loss)
        ratio.set_ylim(0, min(1.05 * ratio.get_ylim()[1], 2))
        loss.set_title(title, loc="left", fontsize="medium")
        loss.set_ylabel(r"loss $L(\theta_k)$")
        ratio.set_ylabel(r"$\lambda_{\max}$ / threshold")
    for axes in rows[-1]:
        axes.set_xlabel(r"step $k$")
    figure.align_ylabels()
    _legend(figure, rows.ravel().tolist())
    return figure


def trajectory(path: Trajectory, names: Sequence[str] | None = None) -> "Figure":
    """The records of one trajectory, one panel each, against t.

    A run in another clock than plain time is drawn against the variable s of that clock, because t grows
    beyond what a float can hold; and one in two phases, whose s is that of two clocks, against log t, with a
    vertical line at the switch and without the start at t = 0.

    **Arguments:**

    - `path`: what to draw.
    - `names`: which records, by default all of them whose rows are numbers or vectors. The entries of a
        vector are drawn in one panel.

    **Returns:** the matplotlib figure.

    **Raises:** `ValueError` if a name was not recorded or its rows are neither numbers nor vectors, and for
    the trajectory of an ensemble.
    """
    if not isinstance(path, Trajectory):
        raise ValueError(
            "path must be what gflow.integrate or gflow.descend returns, or the flow or descent of a "
            f"comparison, but a {type(path).__name__} came."
        )
    if path.statuses is not None:
        raise ValueError(
            "path must be the trajectory of a single run, but is that of an ensemble of "
            f"{len(path.statuses)} members; plot the rows of its records against path.t yourself."
        )
    if np.array_equal(path.s, path.t):
        variable, label = path.t, r"time $t$"
    elif path.switch is None:
        variable, label = path.s, r"variable $s$ of the clock"
    else:
        variable, label = np.where(np.isfinite(path.log_t), path.log_t, np.nan), r"$\log t$"
    if names is None:
        names = [name for name, values in path.records.items() if values.ndim <= 2]
    for name in names:
        if name not in path.records or path.records[name].ndim > 2:
            drawable = [key for key, values in path.records.items() if values.ndim <= 2]
            raise ValueError(
                f"names must hold records that are numbers or vectors, but {name!r} is not; this "
                f"trajectory has {', '.join(drawable)}."
            )
    figure, panels = _stack(len(names))
    for axes, name in zip(panels, names, strict=True):
        values = path.records[name]
        columns = values[:, None] if values.ndim == 1 else values
        for i, column in enumerate(columns.T):
            shade = 0.0 if columns.shape[1] == 1 else 0.7 * i / (columns.shape[1] - 1)
            axes.plot(
                variable,
                column,
                color=str(shade),
                linewidth=1.4,
                linestyle=_DASHES[i % len(_DASHES)],
                label=f"{name} [{i}]" if columns.shape[1] > 1 else None,
            )
        axes.set_ylabel(_SYMBOLS.get(name, name))
        positive = values[np.isfinite(values)]
        if positive.size and positive.min() > 0 and positive.max() > 100 * positive.min():
            _logarithmic(axes)
        if path.switch is not None:
            axes.axvline(variable[path.switch], color="0.45", linewidth=1.0, label="switch of the clock")
    panels[-1].set_xlabel(label)
    _legend(figure, panels)
    return figure


def _stack(count: int) -> tuple["Figure", "Sequence[Axes]"]:
    """Panels above each other on one time axis."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        count,
        1,
        sharex=True,
        squeeze=False,
        figsize=(6.0, 0.9 + 1.75 * count),
        layout="constrained",
    )
    for axes in panels[:, 0]:
        _tidy(axes)
    figure.align_ylabels()
    return figure, list(panels[:, 0])


def _tidy(axes: "Axes") -> None:
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)


def _threshold(axes: "Axes", t: np.ndarray, threshold: float | np.ndarray) -> None:
    """One line, or a curve if it follows a schedule."""
    if np.ndim(threshold):
        axes.plot(t, threshold, label="threshold", **_LIMIT)
    else:
        axes.axhline(float(threshold), label=f"threshold {threshold:.4g}", **_LIMIT)


def _logarithmic(axes: "Axes") -> None:
    """A logarithmic axis whose labels don't crowd: 1, 2, 5 over less than two decades, else powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: "Figure", panels: "Sequence[Axes]") -> None:
    """One legend above all panels, outside the data; what several panels share appears once."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles=list(handles.values()),
            loc="outside upper center",
            ncols=3,
            frameon=False,
            fontsize="small",
        )
