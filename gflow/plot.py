"""Pictures of trajectories and comparisons, good enough for a paper. Needs matplotlib, imported here
only when a picture is drawn.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gflow._compare import Comparison
from gflow._trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["comparison", "trajectory"]

# Told apart by lightness and by dashes, so that a greyscale print still shows which is which.
_FLOW = {"color": "#0b3c5d", "linewidth": 1.8, "linestyle": "-"}
_DESCENT = {"color": "#e07b39", "linewidth": 1.1, "linestyle": "-", "alpha": 0.95}
_LIMIT = {"color": "0.25", "linewidth": 1.0, "linestyle": (0, (6, 3))}
_MARKS = {"crossing": (0, (1, 1.5)), "onset": (0, (4, 1.5, 1, 1.5))}
_DASHES = ["-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1))]
_SYMBOLS = {
    "loss": r"loss $L(\theta)$",
    "gradient_norm": r"gradient norm $\|\nabla L\|$",
    "sharpness": r"sharpness $\lambda_{\max}(\nabla^2 L)$",
    "sharpness_residual": r"residual $\|Hv-\lambda v\|$",
    "sharpness_hvps": "Hessian-vector products",
}


def comparison(both: Comparison) -> "Figure":
    """Loss, sharpness with the threshold, and distance of flow and descent against t = ηk.

    The crossing (sharpness above the threshold) and the onset (the loss begins to rise) are marked by
    vertical lines where they occur.

    **Returns:** the matplotlib figure; `figure.savefig("picture.pdf")` writes it.
    """
    figure, (loss, sharpness, distance) = _stack(3)
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
    if both.threshold is not None:
        sharpness.axhline(both.threshold, label=f"threshold {both.threshold:.4g}", **_LIMIT)
        marks = {"crossing": both.crossing, "onset": both.onset}
    for name, step in marks.items():
        if step is None:
            continue
        for axes in (loss, sharpness, distance):
            axes.axvline(
                step * both.learning_rate,
                color="0.45",
                linewidth=1.0,
                linestyle=_MARKS[name],
                label=f"{name}, step {step}" if axes is loss else None,
            )
    _legend(figure, (loss, sharpness))
    return figure


def trajectory(path: Trajectory, names: Sequence[str] | None = None) -> "Figure":
    """The records of one trajectory against t, one panel each.

    **Arguments:**

    - `path`: what to draw.
    - `names`: which records, by default all of them whose rows are numbers or vectors. The entries of a
        vector are drawn in one panel.

    **Raises:** `ValueError` if a name was not recorded or its rows are neither numbers nor vectors.
    """
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
                path.t,
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
    panels[-1].set_xlabel(r"time $t$")
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
        axes.grid(color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    figure.align_ylabels()
    return figure, list(panels[:, 0])


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
    """One legend above all panels, outside the data."""
    handles: list[Any] = []
    for axes in panels:
        handles += axes.get_legend_handles_labels()[0]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize="small")
