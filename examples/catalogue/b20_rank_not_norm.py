"""B20: a completion on which the flow minimises the rank and not the nuclear norm."""

import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below
from references import smallest_trace
from shared import error, interpolate, predictors, stack

import gflow

SEEN = np.array([[0, 2], [0, 3], [1, 2]])
SCALES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-12)


def rank_one(ratio):
    """vvᵀ with v = (1, R, 1, R), which has the entries seen."""
    v = np.array([1.0, ratio, 1.0, ratio])
    return np.outer(v, v)


def entries(ratio):
    """The places seen, and what is there."""
    return SEEN, np.array([1.0, ratio, ratio])


def complete(ratio, scale, seeds):
    """Where the flows of UUᵀ from N(0, scale²) entries end, one for each seed."""
    starts = [
        gflow.models.SymmetricFactorisation.normal(4, scale, key=jax.random.key(seed)) for seed in seeds
    ]
    return predictors(interpolate(stack(starts), entries(ratio), rtol=1e-10, atol=1e-10 * scale, level=1e-8))


def run(quick: bool) -> Entry:
    """Distances to the solution of rank one for R ≤ 2, and the trace for R = 3, on three seeds."""
    seeds, checks = range(3), []
    measure = np.zeros((3, 4, 4))
    measure[np.arange(3), SEEN[:, 0], SEEN[:, 1]] = 1
    optimum, _ = smallest_trace((measure + measure.transpose(0, 2, 1)) / 2, entries(2.0)[1])
    for ratio in (2.0, 1.5):
        found = complete(ratio, 1e-10, seeds)
        distance = max(np.linalg.norm(matrix - rank_one(ratio)) for matrix in found)
        checks.append(
            below(f"R = {ratio:g}, α = 1e-10: distance to the solution of rank one, worst", distance, 1e-5)
        )
        if ratio == 2:
            least = np.trace(found, axis1=1, axis2=2).min()
            checks.append(
                above(
                    "R = 2: trace − smallest trace by a semidefinite program, 2 in theory",
                    least - optimum,
                    1.99,
                )
            )
    greedy = gflow.bias.greedy_low_rank(
        lambda x: jnp.sum((x[SEEN[:, 0], SEEN[:, 1]] - jnp.array([1.0, 3.0, 3.0])) ** 2) / 2, 4
    )
    checks.append(
        below(
            "greedy low-rank learning, R = 3: error to the solution of rank one",
            error(greedy.matrices[-1], rank_one(3.0)),
            1e-8,
        )
    )
    scales = SCALES[1::2] if quick else SCALES
    traces = np.array([np.trace(complete(3.0, scale, seeds), axis1=1, axis2=2) for scale in scales])
    checks.append(
        below(
            "R = 3: |trace − 20| over α from small to large does not grow",
            np.diff(np.abs(traces[::-1] - 20), axis=0).min() * -1,
            0.0,
        )
    )

    def draw(figure):
        axes = figure.subplots()
        axes.semilogx(scales, traces, "o-", ms=4)
        axes.axhline(20, color="k", lw=0.8, ls="--", label="rank one: 20")
        axes.axhline(12, color="k", lw=0.8, ls=":", label="smallest nuclear norm: 12")
        axes.set(xlabel=r"scale $\alpha$", ylabel="trace of the limit, R = 3")
        axes.legend()

    return Entry(
        "Where the smallest nuclear norm and the lowest rank disagree, the flow of UUᵀ from an infinitesimal start "
        "goes to the lowest rank.",
        "Li, Luo and Lyu, ICLR 2021, arXiv:2012.09839",
        checks,
        draw,
    )
