"""B3: logistic regression goes to the separator of largest ℓ₂ margin, like 1/log t."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below
from references import max_margin
from separable import SEEDS, direction_distance, real, teacher, worst

import gflow
from gflow.clocks import LogLoss
from gflow.losses import Logistic

TIMES = np.r_[0.0, np.geomspace(1, 1e5, 51)]


def run(quick: bool) -> Entry:
    """The direction of w at times up to τ = 1e5, its increments, and log t times its distance."""
    sets = {
        f"{n} × {d}, {seed}": teacher(seed, n, d) for n, d in ((30, 2), (40, 10), (20, 50)) for seed in SEEDS
    }
    found = real()
    sets |= {name: found[name] for name in (("iris",) if quick else found)}
    runs, at = {}, {tau: int(np.argmin(np.abs(TIMES - tau))) for tau in (1e4, 10**4.5, 1e5)}
    for name, (x, y) in sets.items():
        separator = max_margin(y[:, None] * x)
        flow = gflow.integrate(
            gflow.models.DeepLinear([jnp.zeros((1, x.shape[1]))]),
            (x, y),
            TIMES[-1],
            loss=Logistic(),
            clock=LogLoss(),
            save_at=TIMES,
            observe={"w": lambda model, _: model.effective()[0]},
        )
        distance = np.array([direction_distance(w, separator) for w in flow["w"][1:]])
        increment = direction_distance(flow["w"][-1] - flow["w"][at[10**4.5]], separator)
        law = (distance * flow.log_t[1:])[at[1e4] - 1 :]
        runs[name] = flow, distance, increment, np.ptp(law) / law[-1]

    def draw(figure):
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        shown = [name for name in runs if name.endswith(" 0") or not name[-1].isdigit()]
        for name in shown:
            flow, distance, *_ = runs[name]
            late = flow.log_t[1:] > 3
            left.loglog(flow.log_t[1:][late], distance[late], label=name)
        left.set(xlabel=r"$\log t$", ylabel=r"distance of $w/\|w\|$ to $\hat w$")
        left.legend(fontsize=7)
        (x, y), flow = sets["30 × 2, 0"], runs["30 × 2, 0"][0]
        right.scatter(*x.T, c=y, cmap="coolwarm", s=8)
        radius = np.abs(x).max()
        for tau, style in ((1, "C0:"), (10, "C0--"), (1e5, "C0-")):
            w = flow["w"][int(np.argmin(np.abs(TIMES - tau)))]
            across = radius * np.array([-w[1], w[0]]) / np.linalg.norm(w)
            right.plot(*np.stack([-across, across], axis=1), style, label=rf"$\tau$ = {tau:.0e}")
        right.set(xlabel=r"$x_1$", ylabel=r"$x_2$", aspect="equal")
        right.legend(fontsize=7, loc="lower left")

    return Entry(
        "On separable data the flow of logistic regression goes to the separator of largest ℓ₂ margin, at a "
        "distance that falls like 1/log t.",
        "Soudry, Hoffer, Nacson, Gunasekar and Srebro, JMLR 2018, arXiv:1710.10345",
        [
            below(
                "distance of w/‖w‖ to the separator at τ = 1e4",
                worst(r[1][at[1e4] - 1] for r in runs.values()),
                1e-3,
            ),
            below(
                "distance of the increment of w from τ = 10^4.5 to 1e5",
                worst(r[2] for r in runs.values()),
                1e-8,
            ),
            below(
                "log t times the distance: relative change over a decade of τ",
                worst(r[3] for r in runs.values()),
                0.02,
            ),
            above("log t at τ = 1e5, least", min(r[0].log_t[-1] for r in runs.values()), 1e3),
            below(
                "seconds of a run, compilation apart, longest",
                worst(r[0].stats["seconds"] - r[0].stats["compile_seconds"] for r in runs.values()),
                10,
            ),
        ],
        draw,
    )
