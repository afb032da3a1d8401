"""B4: deep linear networks align their layers and go to the separator of largest ℓ₂ margin."""

import jax
import numpy as np
from entry import Entry, above, below
from references import max_margin
from separable import SEEDS, direction_distance, follow, real, separated, teacher, worst

import gflow
from gflow import bias

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
    flow = follow(model, (x, y), level, np.linspace(0, 10, 81), observe=OBSERVE, rtol=1e-4)
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
    """Two and three layers on random data to −log L = 1e8, two on real data to 1e5, on digits to 1e4.

    Quick: two layers on random data, and the wines.
    """
    depths = (2,) if quick else (2, 3)
    runs = {
        (depth, str(seed)): along(depth, *teacher(seed, 20, 8), seed, 1e8)
        for depth in depths
        for seed in SEEDS
    }
    found = real(ones=False)
    levels = {"wine": 1e5} if quick else {"iris": 1e5, "wine": 1e5, "digits": 1e4}
    real_runs = {(2, name): along(2, *found[name], 0, level) for name, level in levels.items()}
    # with 390 parameters the digits have no dense Jacobian
    shortest = {name: 1 - columns[3, -1] for (_, name), columns in real_runs.items()}
    # σ₂/σ₁ ∝ 1/‖θ‖ = e⁻ˢ, over the last two units of s
    factors = [
        np.interp(s[-1], s, np.log(ratio) + s) - np.interp(s[-1] - 2, s, np.log(ratio) + s)
        for s, _, _, _, _, ratio in runs.values()
    ]

    def draw(figure):
        for axes, column, label in zip(
            figure.subplots(1, 3),
            (2, 4, 5),
            (
                r"distance of $\beta$ to $\hat w$",
                r"$1-|\langle v_{j+1},u_j\rangle|$",
                r"$\sigma_2/\sigma_1$ of $W_1$",
            ),
            strict=True,
        ):
            for (depth, name), columns in (runs | real_runs).items():
                color = f"C{depth - 2}" if name.isdigit() else "C2"
                what = f"{depth} layers" + ("" if name.isdigit() else ", real data")
                shown = what if name in ("0", "wine") else None
                axes.loglog(columns[1], np.maximum(columns[column], 1e-16), color=color, lw=1, label=shown)
            axes.set(xlabel=r"$-\log L$", ylabel=label)
        figure.axes[0].legend(fontsize=7)

    return Entry(
        "The flow of a deep linear network aligns its layers, makes each of rank one, and goes to the "
        "separator of largest ℓ₂ margin.",
        "Ji and Telgarsky, ICLR 2019, arXiv:1810.02032; NeurIPS 2020, arXiv:2006.06657",
        [
            below(
                "distance to the separator at −log L = 1e8",
                worst(columns[2, -1] for columns in runs.values()),
                1e-3,
            ),
            below(
                "misalignment 1 − |⟨v, u⟩| there", worst(columns[4, -1] for columns in runs.values()), 1e-6
            ),
            below("σ₂/σ₁ falls like 1/‖θ‖ = e⁻ˢ: relative error of the factor", worst(np.abs(factors)), 0.02),
            *(
                above(
                    f"{name}: margin over the largest at −log L = {levels[name]:.0e}",
                    found,
                    0.998 if name == "digits" else 0.999,
                )
                for name, found in shortest.items()
            ),
        ],
        draw,
    )
