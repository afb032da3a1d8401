"""How far gradient descent is from gradient flow at equal time, against the learning rate.

    python benchmarks/flow_vs_gd.py [--quick] [--output DIR]

Two tanh networks, on 300 of scikit-learn's digits and on 1000 of MNIST, squared error, float64. The
flow is integrated once with tight tolerances as the reference and once with gflow's defaults for its
cost. Descents with learning rates η start from the same weights, and both are recorded at the same
times t = ηk up to the same horizon. While the sharpness stays below 2/η, descent is the explicit Euler
method within its region of stability, and its distance from the flow shrinks like η.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from _networks import digits, mnist, network
from _report import parse, table, write

import gflow

# The reference: another solver than gflow's default, of a higher order.
REFERENCE: dict[str, Any] = {"solver": diffrax.Dopri8(), "rtol": 1e-9, "atol": 1e-12}


class Setting(NamedTuple):
    """A network with data, and the learning rates `spacing / m` for m in `divisors`."""

    name: str
    sizes: tuple[int, ...]
    data: tuple[jax.Array, jax.Array]
    t_max: float
    spacing: float  # between records; every η divides it, so that the records coincide
    divisors: tuple[int, ...]


def settings(quick: bool) -> list[Setting]:
    """Digits and MNIST."""
    small, large = (64, 24, 24, 10), (784, 40, 40, 10)
    if quick:
        return [
            Setting("digits", small, digits(300), 160.0, 1.6, (4, 8, 16)),
            Setting("MNIST-5k", large, mnist(1000), 8.0, 0.8, (4, 8, 16)),
        ]
    return [
        Setting("digits", small, digits(300), 160.0, 1.6, (2, 4, 8, 16, 32, 64, 128)),
        Setting("MNIST-5k", large, mnist(1000), 24.0, 0.8, (2, 4, 8, 16, 32, 64)),
    ]


def measure(setting: Setting) -> dict[str, Any]:
    """The reference flow, the default flow, and one row per learning rate."""
    model = network(setting.sizes)
    records = np.arange(round(setting.t_max / setting.spacing) + 1) * setting.spacing
    shared: dict[str, Any] = {"observe": [gflow.observe.Sharpness()], "save_models": True}
    flow = gflow.integrate(model, setting.data, records[-1], save_at=records, **REFERENCE, **shared)
    default = gflow.integrate(model, setting.data, records[-1], save_at=records, save_models=True)
    return {
        "network": setting.sizes,
        "examples": len(setting.data[1]),
        "parameters": gflow.Problem(model, setting.data).size,
        "t_max": setting.t_max,
        "record_spacing": setting.spacing,
        "reference": {
            "solver": flow.stats["solver"],
            "rtol": REFERENCE["rtol"],
            "atol": REFERENCE["atol"],
            "gradients": path_gradients(flow),
            "seconds": flow.stats["seconds"],
            "loss": flow.loss,
            "sharpness": flow["sharpness"],
        },
        "flow": {
            "solver": default.stats["solver"],
            "gradients": path_gradients(default),
            "hvps": default.stats["hvps"],
            "seconds": default.stats["seconds"],
            "distance": distances(default, flow)[-1],
            "distance_max": distances(default, flow).max(),
        },
        "descents": [
            against(flow, model, setting, divisor) for divisor in sorted(setting.divisors, reverse=True)
        ],
    }


def against(flow: gflow.Trajectory, model: eqx.Module, setting: Setting, divisor: int) -> dict[str, Any]:
    """One descent beside the reference."""
    rate = setting.spacing / divisor
    with warnings.catch_warnings():  # that a large η ends above its start is what the row says
        warnings.simplefilter("ignore")
        descent = gflow.descend(
            model,
            setting.data,
            rate,
            (len(flow.t) - 1) * divisor,
            save_every=divisor,
            save_models=True,
            observe=[gflow.observe.Sharpness()],
            throw=False,
        )
    distance = distances(descent, flow)
    shared = len(distance)
    both = gflow.Comparison(
        flow=flow,
        descent=descent,
        step=np.rint(descent.t / rate).astype(int),
        distance=distance,
        learning_rate=rate,
        threshold=2 / rate,
        quantity="sharpness",
    )
    gap = descent.loss[:shared] / flow.loss[:shared] - 1
    ratio = {"flow": flow["sharpness"] * rate / 2, "descent": descent["sharpness"] * rate / 2}
    return {
        "learning_rate": rate,
        "threshold": 2 / rate,
        "steps": descent.stats["steps"],
        "gradients": path_gradients(descent),
        "seconds": descent.stats["seconds"],
        "status": descent.status,
        "distance": distance[-1] if descent.ok else None,
        "distance_max": distance.max() if descent.ok else None,
        "loss_gap": gap[-1] if descent.ok else None,
        "loss_gap_max": gap[np.argmax(np.abs(gap))],
        "ratio_flow": ratio["flow"][-1],
        "ratio_flow_max": ratio["flow"].max(),
        "ratio_descent": ratio["descent"][-1],
        "ratio_descent_max": ratio["descent"].max(),
        "stable": bool(descent.ok and max(values.max() for values in ratio.values()) < 1),
        "crossing": both.crossing,
        "onset": both.onset,
    }


def distances(path: gflow.Trajectory, flow: gflow.Trajectory) -> np.ndarray:
    """‖θ_path − θ_flow‖ / ‖θ_flow − θ(0)‖ at the records that the two share, 0 at the start."""
    n = int(np.sum(np.isclose(path.t, flow.t[: len(path.t)])))  # one that failed ends in between
    there, here = (
        np.concatenate(
            [
                np.reshape(leaf, (len(leaf), -1))[:n]
                for leaf in jtu.tree_leaves(eqx.filter(each.models, eqx.is_inexact_array))
            ],
            axis=1,
        )
        for each in (path, flow)
    )
    apart = np.linalg.norm(there - here, axis=1)
    moved = np.linalg.norm(here - here[0], axis=1)
    return np.divide(apart, moved, out=np.zeros_like(apart), where=apart > 0)


def path_gradients(path: gflow.Trajectory) -> int:
    """Gradients that the path itself took, without those of the records."""
    return path.stats["gradients"] - path.stats["record_gradients"]


def slopes(descents: list[dict[str, Any]]) -> dict[str, float | None]:
    """Exponent of the distance in η, by least squares in logarithms over the stable η.

    Of the distance at the end and of the largest; `smallest`: of the one at the end between the two
    smallest η alone, where higher powers of η matter least.
    """
    stable = sorted((row for row in descents if row["stable"]), key=lambda row: row["learning_rate"])

    def fit(rows: list[dict[str, Any]], name: str) -> float | None:
        if len(rows) < 2:
            return None
        logs = np.log([[row["learning_rate"], row[name]] for row in rows])
        return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])

    return {
        "end": fit(stable, "distance"),
        "max": fit(stable, "distance_max"),
        "smallest": fit(stable[:2], "distance"),
    }


COLUMNS = {
    "η": "learning_rate",
    "2/η": "threshold",
    "gradients": "gradients",
    "distance": "distance",
    "max": "distance_max",
    "loss gap": "loss_gap",
    "max gap": "loss_gap_max",
    "flow λη/2": "ratio_flow",
    "flow max": "ratio_flow_max",
    "descent λη/2": "ratio_descent",
    "descent max": "ratio_descent_max",
    "stable": "stable",
    "crossing": "crossing",
    "onset": "onset",
    "status": "status",
}


def describe(name: str, result: dict[str, Any]) -> str:
    """The findings on one network, in words and as a table."""
    flow, reference = result["flow"], result["reference"]
    rows = result["descents"]
    etas = ", ".join(f"{row['learning_rate']:g}" for row in rows if row["stable"])
    fitted = ", ".join(
        f"{result['slopes'][key]:.3f} ({words})"
        for key, words in (
            ("end", "at the end"),
            ("max", "largest in time"),
            ("smallest", "at the end, two smallest η"),
        )
        if result["slopes"][key] is not None
    )
    return "\n".join(
        [
            f"## {name}: {result['parameters']} parameters, {result['examples']} examples, "
            f"t = {result['t_max']:g}",
            "",
            f"- flow at default tolerance ({flow['solver']}): {flow['gradients']} gradients, distance "
            f"{flow['distance']:.2g} from the reference (largest {flow['distance_max']:.2g})",
            f"- reference ({reference['solver']}, rtol {reference['rtol']:g}): "
            f"{reference['gradients']} gradients; its sharpness goes from "
            f"{reference['sharpness'][0]:.3g} to {reference['sharpness'][-1]:.3g}",
            f"- exponent of the distance in η, theory 1: {fitted or 'not fitted'}; over the stable η "
            f"(λη/2 < 1 throughout): {etas or 'none'}",
            "",
            table(list(COLUMNS), ([row[key] for key in COLUMNS.values()] for row in rows)),
        ]
    )


def picture(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Distance and sharpness ratio against η, one column per network."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    figure, axes = plt.subplots(
        2, len(results), sharex="col", figsize=(7.2, 5.4), layout="constrained", squeeze=False
    )
    for (top, bottom), (name, result) in zip(axes.T, results.items(), strict=True):
        done = [row for row in result["descents"] if row["distance"] is not None]
        rows = result["descents"]
        eta = np.array([row["learning_rate"] for row in done])
        apart = np.array([row["distance"] for row in done])
        stable = np.array([row["stable"] for row in done])
        guide = apart[0] * eta / eta[0]
        top.loglog(eta, guide, color="0.6", linestyle=(0, (5, 3)), label=r"slope 1 in $\eta$")
        top.loglog(eta[stable], apart[stable], "o", color="black", label=r"descent, $\lambda\eta/2<1$")
        top.loglog(
            eta[~stable],
            apart[~stable],
            "o",
            color="black",
            markerfacecolor="white",
            label=r"descent, $\lambda\eta/2$ passed 1",
        )
        top.axhline(
            result["flow"]["distance"],
            color="0.3",
            linestyle=(0, (1, 1.5)),
            label="flow at default tolerance",
        )
        top.set_title(f"{name}, $t={result['t_max']:g}$", fontsize="medium")
        every = np.array([row["learning_rate"] for row in rows])
        for key, label, style in (
            ("ratio_flow", "flow, at the end", {"marker": "^", "linestyle": "--", "color": "0.6"}),
            ("ratio_descent", "descent, at the end", {"marker": "s", "color": "black"}),
            ("ratio_descent_max", "descent, largest", {"marker": "x", "linestyle": ":"}),
        ):
            style = {"color": "0.3", "markerfacecolor": "none", "markersize": 6} | style
            bottom.loglog(every, [row[key] for row in rows], label=label, **style)
        bottom.axhline(1, color="0.25", linewidth=1, label=r"threshold $\lambda=2/\eta$")
        bottom.set_xlabel(r"learning rate $\eta$")
        bottom.set_xticks(every, [f"{value:g}" for value in every], fontsize="small")
        bottom.xaxis.set_minor_locator(NullLocator())
        bottom.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bottom.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bottom.yaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel(
        "distance at the end\n"
        r"$\|\theta_k-\theta(\eta k)\|\,/\,\|\theta(\eta k)-\theta(0)\|$"
    )
    axes[1, 0].set_ylabel(r"sharpness ratio $\lambda\eta/2$")
    for each in axes.flat:
        each.grid(color="0.92", linewidth=0.6)
        each.spines[["top", "right"]].set_visible(False)
    for row, upper in ((axes[0], True), (axes[1], False)):
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside upper center" if upper else "outside lower center",
            ncols=4,
            frameon=False,
            fontsize="small",
        )
    figure.savefig(path, dpi=200)


def main() -> None:
    """Runs everything, prints the tables and writes the files."""
    arguments = parse(__doc__)
    jax.config.update("jax_enable_x64", True)

    results = {}
    for setting in settings(arguments.quick):
        result = measure(setting)
        result["slopes"] = slopes(result["descents"])
        results[setting.name] = result
        print(describe(setting.name, result), end="\n\n")
    path = write("flow_vs_gd", {"quick": arguments.quick} | results, arguments.output)
    picture(results, path.with_suffix(".png"))
    print(f"{path} and {path.with_suffix('.png').name} written")


if __name__ == "__main__":
    main()
