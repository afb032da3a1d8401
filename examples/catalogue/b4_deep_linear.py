"""B4: deep linear networks align their layers and go to the separator of largest ℓ₂ margin."""

import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below
from references import max_margin
from separable import SEEDS, direction_distance, follow, real, separated, teacher, worst

import gflow
from gflow import bias

LEVELS = np.geomspace(10, 1e8, 8)
STD = {2: 0.1, 3: 0.3}


OBSERVE = {
    "w": lambda model, _: model.effective()[0],
    "alignment": lambda model, _: bias.layer_alignment(model.matrices).min(),
    "ratio": lambda model, _: bias.singular_value_ratio(model.matrices[0]),
}


def along(depth, x, y, seed, level):
    """From the switch on: s, −log L, distance to the separator, margin gap, misalignment and σ₂/σ₁."""
    z = y[:, None] * x
    separator = max_margin(z)
    sizes = [x.shape[1], *[6] * (depth - 1), 1]
    model = gflow.models.DeepLinear.normal(sizes, STD[depth], key=jax.random.key(seed))
    flow = follow(model, (x, y), level, np.linspace(0, 12, 97), observe=OBSERVE)
    w = flow["w"]
    margin = (w @ z.T).min(axis=1) / np.linalg.norm(w, axis=1) * np.linalg.norm(separator)
    columns = (
        flow.s,
        -flow["log_loss"],
        np.array([direction_distance(row, separator) for row in w]),
        1 - margin,
        1 - flow["alignment"],
        flow["ratio"],
    )
    return np.array([column[separated(flow)] for column in columns])


def run(quick: bool) -> Entry:
    """Two and three layers on random data, two on real data."""
    runs = {(depth, str(seed)): along(depth, *teacher(seed, 20, 8), seed) for depth in STD for seed in SEEDS}
    found = real(ones=False)
    real_runs = {(2, name): along(2, *found[name], 0) for name in (("wine",) if quick else found)}
    slopes = [np.diff(np.log(rows[-3:, 3])) + np.diff(rows[-3:, 4]) for rows in runs.values()]

    def draw(figure):
        for axes, column, label in zip(
            figure.subplots(1, 3),
            (0, 2, 3),
            (
                r"distance of $\beta$ to $\hat w$",
                r"$1-|\langle v_{j+1},u_j\rangle|$",
                r"$\sigma_2/\sigma_1$ of $W_1$",
            ),
            strict=True,
        ):
            for (depth, name), rows in (runs | real_runs).items():
                color = f"C{depth - 2}" if name.isdigit() else "C2"
                what = f"{depth} layers" + ("" if name.isdigit() else ", real data")
                shown = what if name in ("0", "wine") else None
                axes.loglog(LEVELS, np.maximum(rows[:, column], 1e-16), color=color, lw=1, label=shown)
            axes.set(xlabel=r"$-\log L$", ylabel=label)
        figure.axes[0].legend(fontsize=7)

    return Entry(
        "The flow of a deep linear network aligns its layers, makes each of rank one, and goes to the "
        "separator of largest ℓ₂ margin.",
        "Ji and Telgarsky, ICLR 2019, arXiv:1810.02032; NeurIPS 2020, arXiv:2006.06657",
        [
            below(
                "distance to the separator at −log L = 1e8",
                worst(rows[-1, 0] for rows in runs.values()),
                1e-3,
            ),
            below("misalignment 1 − |⟨v, u⟩| there", worst(rows[-1, 2] for rows in runs.values()), 1e-6),
            below(
                "σ₂/σ₁ falls like 1/‖θ‖: relative error of the factor",
                worst(map(lambda s: np.abs(s).max(), slopes)),
                0.02,
            ),
            above(
                "real data: margin over the largest, least",
                1 - worst(rows[-1, 1] for rows in real_runs.values()),
                0.999,
            ),
        ],
        draw,
    )
