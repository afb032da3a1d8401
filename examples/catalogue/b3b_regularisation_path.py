"""B3B: the flow of logistic regression follows the path of its constrained optima."""

import diffrax
import jax.numpy as jnp
import numpy as np
from entry import Entry, below
from references import logistic_in_ball
from separable import SEEDS, direction_distance, teacher, worst

import gflow
from gflow.losses import Log, Logistic

TIMES = np.r_[0.0, np.geomspace(0.1, 1e3, 25)]  # log-loss time; log t is about 300 in the end


def run(quick: bool) -> Entry:
    """The direction of w(t) beside that of the smallest loss among all w of its norm."""
    del quick
    distances = []
    for seed in SEEDS:
        x, y = teacher(seed, 30, 2)
        flow = gflow.integrate(
            gflow.models.DeepLinear([jnp.zeros((1, 2))]), (x, y), TIMES[-1], loss=Log(Logistic()),
            solver=diffrax.Kvaerno5(), rtol=1e-8, atol=1e-11, save_at=TIMES,
            observe={"w": lambda model, _: model.effective()[0]},
        )  # fmt: skip
        z = y[:, None] * x
        distances.append(
            [direction_distance(w, logistic_in_ball(z, float(np.linalg.norm(w)))) for w in flow["w"][1:]]
        )

    def draw(figure):
        axes = figure.subplots()
        for seed, row in zip(SEEDS, distances, strict=True):
            axes.loglog(TIMES[1:], row, ".-", label=f"data {seed}")
        axes.set(xlabel=r"$\tau$", ylabel=r"distance to the optimum's direction")
        axes.legend()

    return Entry(
        "At every time the flow of logistic regression has nearly the direction of the smallest loss in the "
        "ball whose radius is its norm, and in the end the same.",
        "Ji and Telgarsky, COLT 2019, arXiv:1803.07300; Ji, Dudík, Schapire and Telgarsky, COLT 2020, "
        "arXiv:2006.11226",
        [
            below("distance of the directions, largest at τ from 0.1 to 1e3", np.max(distances), 0.02),
            below("the same at τ = 1e3", worst(row[-1] for row in distances), 1e-4),
        ],
        draw,
    )
