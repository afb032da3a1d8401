"""B3B: the flow of logistic regression follows the path of its constrained optima."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, below
from references import logistic_in_ball
from separable import SEEDS, direction_distance, teacher, worst

import gflow
from gflow.clocks import LogLoss
from gflow.losses import Logistic

TIMES = 10.0 ** np.arange(-1, 5)
TAUS = np.geomspace(10, 1e3, 60)  # log t is above 200 in the end


def along(x, y, t_max, save_at, clock=None):
    """log t, and how far apart w(t) and the smallest loss in the ball of its norm are in direction."""
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


def run(quick: bool) -> Entry:
    """Six times from 0.1 to 1e4 in plain time, and then in log-loss time to τ = 1e3.

    How fast the two come together depends on the data: at t = 1e4 they are on their way.
    """
    del quick
    sets = [teacher(seed, 30, 2) for seed in SEEDS]
    early = [along(*data, TIMES[-1], TIMES)[1] for data in sets]
    late = [along(*data, TAUS[-1], TAUS, LogLoss()) for data in sets]

    def draw(figure):
        axes = figure.subplots()
        for seed, first, (log_t, distance) in zip(SEEDS, early, late, strict=True):
            (line,) = axes.loglog(np.log(TIMES[2:]), first[2:], ".", ms=4)
            axes.loglog(log_t, distance, color=line.get_color(), lw=1, label=f"data {seed}")
        axes.set(xlabel=r"$\log t$", ylabel="distance to the optimum's direction", ylim=(1e-6, None))
        axes.legend()

    return Entry(
        "At every time the flow of logistic regression has nearly the direction of the smallest loss in the "
        "ball whose radius is its norm, and in the end the same.",
        "Ji and Telgarsky, COLT 2019, arXiv:1803.07300; Ji, Dudík, Schapire and Telgarsky, COLT 2020, "
        "arXiv:2006.11226",
        [
            below("distance of the directions, largest at t = 0.1, 1, …, 1e4", np.max(early), 0.02),
            below("the same at τ = 1e3, log t > 200", worst(row[1][-1] for row in late), 1e-4),
        ],
        draw,
    )
