"""B2: the risk of random features peaks where they are as many as the examples, and falls beyond."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below, holds
from references import closest, random_feature_risks
from shared import error, sum_of_squares

import gflow

WIDTHS = np.array([5, 10, 20, 30, 36, 40, 44, 50, 60, 100, 200, 400])


def run(quick: bool) -> Entry:
    """The curve of median risks over 20 draws, and the flow beside the smallest solution, on three seeds."""
    risks = np.median(
        [random_feature_risks(seed, WIDTHS, n=40, d=10, noise=0.2) for seed in range(20)], axis=0
    )
    worst = 0.0
    for seed in range(3):
        random = np.random.default_rng(seed)
        x, w = random.normal(size=(40, 10)), random.normal(size=(200, 10)) / np.sqrt(10)
        y = x @ random.normal(size=10) / np.sqrt(10) + 0.2 * random.normal(size=40)
        phi = np.maximum(x @ w.T, 0)
        model = gflow.models.TwoLayer(jnp.asarray(w), jnp.zeros(200))
        flow = gflow.integrate(
            model,
            (x, y),
            100.0,
            loss=sum_of_squares,
            trainable=gflow.models.TwoLayer(False, True),
            rtol=1e-8,
            atol=1e-11,
            save_at=2,
        )
        worst = max(worst, error(np.asarray(flow.model.v), closest(phi, y, np.zeros(200))))
    at = dict(zip(WIDTHS, risks, strict=True))
    checks = [
        below(
            "200 features: error of the flow's limit to the smallest solution, worst of 3 seeds", worst, 1e-6
        ),
        holds("the median risk peaks where features and examples are equally many", at[40] == risks.max()),
        above("its peak over its minimum", at[40] / risks.min(), 20),
        below("risk of 400 features over that of 20", at[400] / at[20], 1),
    ]

    def draw(figure):
        axes = figure.subplots()
        axes.loglog(WIDTHS, risks, "o-", ms=4)
        axes.axvline(40, color="k", ls="--", lw=0.8, label="examples")
        axes.set(xlabel="features", ylabel="median risk of 20 draws")
        axes.legend()

    return Entry(
        "The flow of random features ends at the smallest solution, whose risk peaks at "
        "interpolation and falls again beyond.",
        "Belkin, Hsu, Ma and Mandal, PNAS 2019, arXiv:1812.11118",
        checks,
        draw,
    )
