"""The edge of stability: five optimisers at their thresholds, and where gradient descent leaves the flow.

Tanh networks learn 500 of scikit-learn's digits and 1000 of MNIST. Three questions, a picture each:

1. Does the sharpness settle at the threshold of gradient descent, Polyak's and Nesterov's momentum,
   RMSProp and Adam? (three seeds; squared error)
2. What happens at the onset, step by step?
3. When does gradient descent leave gradient flow, at three learning rates? (squared error, and
   cross-entropy with 30 % random labels, without which its sharpness stays low)

    python examples/edge_of_stability.py [--quick] [--output edge_of_stability]

Writes pictures, tables and `edge_of_stability.json` into the output folder. `--quick` takes the digits alone,
one seed, fewer steps and one learning rate; it is done in less than a minute.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import gflow
from gflow import observe, stability

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import _report  # noqa: E402
from _networks import digits, mnist, network  # noqa: E402

Data = tuple[jax.Array, jax.Array]


class Setting(NamedTuple):
    """A network and the data it learns, with optimisers and how many steps they make."""

    name: str
    sizes: tuple[int, ...]
    data: Data  # images and one-hot labels
    optimizers: dict[str, tuple[stability.AbstractOptimizer, int]]

    @property
    def noisy(self) -> Data:
        """With 30 % of the labels replaced by random ones, for cross-entropy."""
        random = np.random.RandomState(0)
        labels = np.argmax(np.asarray(self.data[1]), axis=1)
        chosen = random.rand(len(labels)) < 0.3
        labels[chosen] = random.randint(0, 10, chosen.sum())
        return self.data[0], jnp.asarray(labels)


def settings(quick: bool) -> list[Setting]:
    """Digits, and MNIST unless it has to be quick."""
    of_digits = {
        "gradient descent": (stability.GradientDescent(0.25), 800 if quick else 2000),
        "Polyak": (stability.Polyak(0.5, 0.9), 600 if quick else 3000),
        "Nesterov": (stability.Nesterov(0.18, 0.9), 600 if quick else 3000),
        "RMSProp": (stability.RMSProp(1e-4, 0.99), 2600 if quick else 4000),
        "Adam": (stability.Adam(1e-3, 0.9, 0.99), 900 if quick else 2000),
    }
    of_mnist = {
        "gradient descent": (stability.GradientDescent(0.2), 1000),
        "Polyak": (stability.Polyak(0.3, 0.5), 1000),
        "Nesterov": (stability.Nesterov(0.15, 0.9), 1500),
        "RMSProp": (stability.RMSProp(1e-4, 0.99), 1500),
        "Adam": (stability.Adam(1e-3, 0.9, 0.99), 1000),
    }
    found = [Setting("digits", (64, 48, 48, 10), digits(500), of_digits)]
    if not quick:
        found.append(Setting("MNIST-5k", (784, 40, 40, 10), mnist(1000), of_mnist))
    return found


Runs = dict[str, tuple[gflow.Trajectory, stability.AbstractOptimizer]]


def at_the_threshold(setting: Setting, seeds: int, save_every: int) -> tuple[list[dict[str, Any]], Runs]:
    """One row of numbers for each optimiser and seed, and the runs of the first seed."""
    rows, runs = [], {}
    for name, (optimizer, steps) in setting.optimizers.items():
        preconditioned = optimizer.quantity != "sharpness"
        sharpness = observe.PreconditionedSharpness() if preconditioned else observe.Sharpness()
        for seed in range(seeds):
            path = gflow.descend(
                network(setting.sizes, seed),
                setting.data,
                optimizer,
                steps,
                save_every=save_every,
                observe=[sharpness, observe.Oscillation()],
            )
            seen = stability.edge(path, optimizer)
            threshold = float(optimizer.threshold())
            row = {"data": setting.name, "optimizer": name, "made_by": repr(optimizer), "seed": seed}
            row |= {"threshold": threshold, "quantity": optimizer.quantity, "steps": steps}
            row |= {"recorded_every": save_every, **vars(seen)}
            row |= {"final_loss": float(path.loss[-1]), "hvps": path.stats["hvps"]}
            rows.append(row | {"seconds": path.stats["seconds"]})
            print(
                f"{setting.name:9} {name:17} seed {seed}  threshold {threshold:<8.4g} crossing "
                f"{seen.crossing}, onset {seen.onset}: {seen.mean:.3f} ± {seen.spread:.3f} of the threshold",
                flush=True,
            )
            if seed == 0:
                runs[f"{name}, threshold {threshold:.4g}"] = path, optimizer
    return rows, runs


def around_the_onset(setting: Setting) -> tuple[dict[str, Any], Figure]:
    """Every step of gradient descent from 40 steps before the onset to 60 after it."""
    optimizer = setting.optimizers["gradient descent"][0]
    rate, data = optimizer.learning_rate, setting.data  # pyright: ignore[reportAttributeAccessIssue]
    model = network(setting.sizes)
    before = gflow.descend(model, data, rate, 800, save_every=10, observe=[observe.Sharpness()])
    early = stability.edge(before, rate)
    onset = early.onset
    assert onset is not None and onset > 40
    model = gflow.descend(model, data, rate, onset - 40).model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the loss ended")  # higher than it began: the point of it
        path = gflow.descend(
            model, data, rate, 100, save_every=1, observe=[observe.Sharpness(), observe.Oscillation()]
        )
    seen = stability.edge(path, rate)
    figure, panels = plt.subplots(3, 1, sharex=True, figsize=(6.0, 5.2), layout="constrained")
    step = onset - 40 + np.arange(101)
    loss, sharpness, oscillation = panels
    iterates = {"color": "#e07b39", "linewidth": 1.2, "marker": "o", "markersize": 2}
    midway = {"color": "#0b3c5d", "linewidth": 1.8}
    loss.plot(step, path.loss, label=r"iterates $\theta_k$", **iterates)
    loss.plot(step, path["midpoint_loss"], label=r"midway, $(\theta_k+\theta_{k+1})/2$", **midway)
    loss.set_ylabel(r"loss $L$")
    sharpness.plot(step, path["sharpness"], **iterates)
    sharpness.plot(step, path["midpoint_sharpness"], **midway)
    sharpness.axhline(2 / rate, color="0.25", linestyle=(0, (6, 3)), linewidth=1, label=r"threshold $2/\eta$")
    sharpness.set_ylabel(r"sharpness $\lambda_{\max}$")
    sign = np.sign(path["oscillation"][-1])  # that of an eigenvector is free
    oscillation.plot(step, sign * path["oscillation"], **iterates)
    oscillation.set_ylabel("oscillation\n" + r"$\langle v,\theta_{k+1}-\theta_k\rangle/2$")
    oscillation.set_xlabel(r"step $k$")
    for axes in panels:
        tidy(axes)
        axes.axvline(onset, color="0.45", linewidth=1, linestyle=(0, (4, 1.5, 1, 1.5)), label="onset")
    handles = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles, loc="outside upper center", ncols=4, frameon=False, fontsize="small"
    )
    figure.align_ylabels()
    counted = {"onset": onset, "crossing": early.crossing}  # counted from the start
    return {"data": setting.name, "learning_rate": rate, **vars(seen), **counted}, figure


class Race(NamedTuple):
    """Flow against gradient descent: data with a loss, the horizon, learning rates."""

    name: str
    setting: Setting
    noisy: bool  # cross-entropy on noisy labels, or squared error
    t_max: float
    rates: tuple[float, ...]


def races(found: Sequence[Setting], quick: bool) -> list[Race]:
    """Two losses on each of the data sets; one of all that if it has to be quick."""
    if quick:
        return [Race("digits, squared error", found[0], False, 100.0, (0.4,))]
    small, large = found
    return [
        Race("digits, squared error", small, False, 200.0, (0.15, 0.25, 0.4)),
        Race("digits, cross-entropy", small, True, 200.0, (0.25, 0.5, 1.0)),
        Race("MNIST-5k, squared error", large, False, 80.0, (0.1, 0.15, 0.2)),
        Race("MNIST-5k, cross-entropy", large, True, 100.0, (0.1, 0.2, 0.4)),
    ]


def against_the_flow(race: Race, records: int) -> tuple[list[dict[str, Any]], list[gflow.Comparison]]:
    """One comparison for each learning rate, and a row of numbers about it."""
    rows, comparisons = [], []
    data = race.setting.noisy if race.noisy else race.setting.data
    for rate in race.rates:
        save_every = max(1, round(race.t_max / rate / records))
        both = gflow.compare(
            network(race.setting.sizes),
            data,
            learning_rate=rate,
            t_max=race.t_max,
            save_every=save_every,
        )
        seen = both.edge
        assert both.threshold is not None
        at = lambda k: None if k is None else float(np.interp(k, both.step, both.distance))  # noqa: B023
        row = {"race": race.name, "learning_rate": rate, "threshold": both.threshold, **vars(seen)}
        row |= {
            "highest_sharpness_of_flow": float(both.flow["sharpness"].max()),
            "highest_sharpness_of_descent": float(both.descent["sharpness"].max()),
            "distance_at_crossing": at(seen.crossing),
            "distance_at_onset": at(seen.onset),
            "distance_at_end": float(both.distance[-1]),
        }
        rows.append(row)
        comparisons.append(both)
        print(
            f"{race.name:24} η = {rate:<5g} 2/η = {both.threshold:<6.4g} crossing {seen.crossing}, onset "
            f"{seen.onset}; distance at the end {both.distance[-1]:.3f}",
            flush=True,
        )
    return rows, comparisons


def picture_of_races(raced: Mapping[str, Sequence[gflow.Comparison]]) -> Figure:
    """One row for each race: loss, sharpness with thresholds, distance."""
    styles = [("#e07b39", "-"), ("0.55", (0, (4, 1.5))), ("black", (0, (1, 1.2)))]
    figure, rows = plt.subplots(
        len(raced), 3, squeeze=False, figsize=(9.0, 0.6 + 1.9 * len(raced)), layout="constrained"
    )
    for (loss, sharpness, distance), (name, comparisons) in zip(rows, raced.items(), strict=True):
        flow = comparisons[0].flow
        for axes, values in ((loss, flow.loss), (sharpness, flow["sharpness"])):
            axes.plot(flow.t, values, color="#0b3c5d", linewidth=2.2, label="gradient flow")
        for (color, dashes), both in zip(styles, comparisons, strict=False):
            line: dict[str, Any] = {"color": color, "linestyle": dashes, "linewidth": 1.3}
            t, rate = both.descent.t, both.learning_rate
            loss.plot(t, both.descent.loss, label=rf"$\eta = {rate:g}$", **line)
            sharpness.plot(t, both.descent["sharpness"], **line)
            sharpness.axhline(2 / rate, **(line | {"linewidth": 0.7}))
            distance.plot(both.flow.t[1 : len(both.distance)], both.distance[1:], **line)
            if both.onset is not None:
                distance.axvline(both.onset * rate, **(line | {"linewidth": 0.7}))
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        loss.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        loss.yaxis.set_minor_formatter(NullFormatter())
        distance.set_ylim(bottom=0)
        highest = max(both.flow["sharpness"].max() for both in comparisons)
        sharpness.set_ylim(0, 1.15 * max(highest, *(both.descent["sharpness"].max() for both in comparisons)))
        loss.set_title(name, loc="left", fontsize="medium")
        loss.set_ylabel(r"loss $L(\theta)$")
        sharpness.set_ylabel(r"sharpness $\lambda_{\max}$")
        distance.set_ylabel(r"$\|\theta_k-\theta\|\,/\,\|\theta-\theta_0\|$")
        handles = loss.get_legend_handles_labels()[0]
        distance.legend(
            handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize="small"
        )
        for axes in (loss, sharpness, distance):
            tidy(axes)
    for axes in rows[-1]:
        axes.set_xlabel(r"time $t = \eta k$")
    thin = [Line2D([], [], color="0.3", linewidth=0.7, marker=mark, markersize=9) for mark in ("_", "|")]
    labels = [r"thin, horizontal: threshold $2/\eta$", "thin, vertical: onset, the loss of descent rises"]
    figure.legend(thin, labels, loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    figure.align_ylabels()
    return figure


def tidy(axes: Any) -> None:
    """A light grid and no box."""
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)


def table_of_optimizers(rows: Iterable[Mapping[str, Any]]) -> str:
    """Means over the window from the onset to the end, one for each seed."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["optimizer"]), []).append(row)
    each = lambda group, name, digits: ", ".join(shown(row[name], digits) for row in group)
    cells = [
        [data, name, f"{group[0]['threshold']:.4g}", *(each(group, key, 0) for key in ("crossing", "onset"))]
        + [each(group, key, 3) for key in ("mean", "midpoint_mean")]
        + [shown(float(np.mean([row["nonmonotone"] for row in group])), 2)]
        for (data, name), group in groups.items()
    ]
    head = ["data", "optimiser", "threshold", "crossing", "onset", "sharpness / threshold", "midway"]
    return _report.table([*head, "steps uphill"], cells)


def table_of_onset(row: Mapping[str, Any]) -> str:
    """What the oscillation is like once it is there."""
    cells = [
        ["onset: first step at which the loss rises", str(row["onset"])],
        ["share of steps after it at which the oscillation changes sign", f"{row['alternation']:.2f}"],
        ["its root mean square", f"{row['amplitude']:.3f}"],
        ["loss midway between iterates, relative to that of the iterate", f"{row['midpoint_loss']:.2f}"],
        ["sharpness / threshold", f"{row['mean']:.3f} ± {row['spread']:.3f}"],
        ["the same midway", f"{row['midpoint_mean']:.3f} ± {row['midpoint_spread']:.3f}"],
    ]
    return _report.table([f"{row['data']}, gradient descent, η = {row['learning_rate']:g}", ""], cells)


def table_of_races(rows: Iterable[Mapping[str, Any]]) -> str:
    """Where each descent left the flow."""
    distances = [f"distance_at_{place}" for place in ("crossing", "onset", "end")]
    cells = [
        [row["race"], f"{row['learning_rate']:g}", f"{row['threshold']:.4g}"]
        + [shown(row[f"highest_sharpness_of_{path}"], 1) for path in ("flow", "descent")]
        + [shown(row[name], 0) for name in ("crossing", "onset")]
        + [shown(row[name], 3) for name in distances]
        for row in rows
    ]
    head = ["race", "η", "2/η", "highest sharpness of the flow", "of descent", "crossing", "onset"]
    return _report.table([*head, "distance at crossing", "at onset", "at the end"], cells)


def shown(value: float | None, digits: int) -> str:
    """A number with so many digits, or a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def main() -> None:
    """Runs everything, prints a line for each run, writes pictures, tables and numbers."""
    parser = argparse.ArgumentParser(description="Optimisers at the edge of stability, on real data.")
    parser.add_argument("--quick", action="store_true", help="digits alone, one seed, fewer steps")
    parser.add_argument("--output", type=Path, default=Path("edge_of_stability"), help="folder to write to")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    began, quick = perf_counter(), arguments.quick

    def keep(figure: Figure, name: str) -> None:
        figure.savefig(arguments.output / f"{name}.png", dpi=200)
        plt.close(figure)

    found = settings(quick)
    rows, flow_rows, raced = [], [], {}
    for setting in found:
        save_every = 20 if quick or setting.name != "digits" else 10
        numbers, runs = at_the_threshold(setting, 1 if quick else 3, save_every)
        rows += numbers
        keep(gflow.plot.edge(runs), f"optimizers_{setting.name.lower()}")
    onset, figure = around_the_onset(found[0])
    keep(figure, "onset")
    for race in races(found, quick):
        numbers, raced[race.name] = against_the_flow(race, 30 if quick else 100)
        flow_rows += numbers
    keep(picture_of_races(raced), "flow")

    tables = {
        "optimizers": table_of_optimizers(rows),
        "onset": table_of_onset(onset),
        "flow": table_of_races(flow_rows),
    }
    for name, text in tables.items():
        (arguments.output / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    seconds = perf_counter() - began
    results = {"seconds": seconds, "optimizers": rows, "onset": onset, "flow": flow_rows}
    _report.write("edge_of_stability", results, arguments.output)
    print(f"\n{arguments.output} written after {seconds:.1f} s")


if __name__ == "__main__":
    main()
