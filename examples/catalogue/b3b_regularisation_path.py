"""B3B: the flow of logistic regression follows the path of its constrained optima."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, below
from references import logistic_in_ball, max_margin
from separable import SEEDS, direction_distance, teacher, worst

import gflow
from gflow.clocks import LogLoss
from gflow.losses import Logistic

TIMES = 10.0 ** np.arange(-1, 5)
TAUS = np.geomspace(10, 1e3, 60)  # log t is about 300 in the end


def along(x, y, t_max, save_at, clock=None):
    """log t, and the distance between the directions of w(t) and of the smallest loss in the ball of its norm."""
    flow = gflow.integrate(
        gflow.models.DeepLinear([jnp.zeros((1, 2))]),
        (x, y),
        t_max,
        loss=Logistic(),
        clock=clock,
        rtol=1e-9,
        atol=1e-12,
        save_at=save_at,
        observe={"w": lambda model, _: model.effective()[0]},
    )
    best = [logistic_in_ball(y[:, None] * x, float(np.linalg.norm(w))) for w in flow["w"]]
    return flow.log_t, np.array([direction_distance(*pair) for pair in zip(flow["w"], best, strict=True)])


def excess(x, y):
    """By how much the margin of the nearest example exceeds 1 that is no support vector of the separator."""
    margins = y * (x @ max_margin(y[:, None] * x))
    return np.min(margins[margins > 1 + 1e-6]) - 1


def run(quick: bool) -> Entry:
    """Six times from 0.1 to 1e4 in plain time, and then by log-loss time to log t = 300."""
    del quick
    sets = [teacher(seed, 30, 2) for seed in SEEDS]
    early = [along(*data, TIMES[-1], TIMES)[1] for data in sets]
    late = [along(*data, TAUS[-1], TAUS, LogLoss()) for data in sets]
    rates = []
    for (log_t, distance), data in zip(late, sets, strict=True):
        # w grows like log t, and what is left of the example beyond the support vectors falls like a power of t
        fits = (distance < 1e-3) & (distance > 1e-8)
        print(excess(*data), fits.sum(), distance[::6], log_t[::6])
        rates.append(-np.polyfit(log_t[fits], np.log(distance * log_t)[fits], 1)[0] / excess(*data))

    def draw(figure):
        axes = figure.subplots()
        for seed, first, (log_t, distance) in zip(SEEDS, early, late, strict=True):
            (line,) = axes.loglog(np.log(TIMES[2:]), first[2:], ".", ms=4)
            axes.loglog(log_t, distance, color=line.get_color(), lw=1, label=f"data {seed}")
        axes.set(xlabel=r"$\log t$", ylabel="distance to the optimum's direction", ylim=(1e-10, None))
        axes.legend()
    print(rates, early)

    return Entry(
        "At every time the flow of logistic regression has nearly the direction of the smallest loss in the "
        "ball whose radius is its norm, and they come together like t^(−δ)/log t, δ the excess margin of the "
        "nearest example that is no support vector.",
        "Ji and Telgarsky, COLT 2019, arXiv:1803.07300; Ji, Dudík, Schapire and Telgarsky, COLT 2020, "
        "arXiv:2006.11226",
        [
            below("distance of the directions, largest at t = 0.1, 1, …, 1e4", np.max(early), 0.02),
            below("the same at τ = 1e3", worst(row[1][-1] for row in late), 1e-4),
            below("rate over δ, less 1", worst(np.abs(np.array(rates) - 1)), 0.05),
        ],
        draw,
    )
