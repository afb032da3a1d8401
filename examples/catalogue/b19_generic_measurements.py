"""B19: with generic measurements of a matrix of rank one, factorisation finds it."""

import diffrax
import jax
import numpy as np
from entry import Entry, below
from references import smallest_trace
from shared import error, sum_of_squares

import gflow


def run(quick: bool) -> Entry:
    """Trace over the optimum of a semidefinite program, on three seeds."""
    ratios, distances = [], []
    for seed in range(3):
        random = np.random.default_rng(seed)
        x = random.normal(size=(9, 5, 5))
        x = (x + x.transpose(0, 2, 1)) / 2
        v = random.normal(size=5)
        y = x @ v @ v
        start = gflow.models.SymmetricFactorisation.normal(5, 1e-5, key=jax.random.key(seed))
        # beyond the plateau at a relative residual of 1e-4, of saddles, the rest takes until t = 1e5
        flow = gflow.integrate(
            start,
            (x, y),
            1e5,
            loss=sum_of_squares,
            solver=diffrax.Kvaerno5(),
            rtol=1e-7,
            atol=1e-12,
            save_at=2,
        )
        found = flow.model.effective()
        optimum, matrix = smallest_trace(x, y)
        ratios.append(np.trace(found) / optimum)
        distances.append((error(found, np.outer(v, v)), error(matrix, np.outer(v, v))))
    checks = [
        below(
            "α = 1e-5: trace / optimum of the semidefinite program − 1, worst of 3 seeds",
            max(ratios) - 1,
            1e-3,
        ),
        below("relative distance to the matrix of rank one, worst", max(d for d, _ in distances), 1e-2),
    ]

    def draw(figure):
        axes = figure.subplots()
        places = np.arange(3)
        axes.bar(places - 0.2, [d for d, _ in distances], 0.4, label="flow")
        axes.bar(places + 0.2, [d for _, d in distances], 0.4, label="semidefinite program")
        axes.set(yscale="log", xticks=places, xlabel="seed", ylabel="distance to the truth")
        axes.legend()

    return Entry(
        "From a tiny start the flow of UUᵀ recovers a matrix of rank one from generic measurements,"
        " as the smallest nuclear norm does.",
        "Gunasekar et al., NeurIPS 2017, arXiv:1705.09280",
        checks,
        draw,
    )
