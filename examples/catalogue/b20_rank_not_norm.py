"""B20: a completion on which the flow minimises the rank and not the nuclear norm."""

import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below, holds
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


def complete(ratio, starts, scale):
    """Where the flows of UUᵀ end, one for each start of that scale."""
    how = dict(rtol=1e-10, atol=1e-10 * scale, level=1e-8)
    return predictors(interpolate(stack(starts), entries(ratio), **how))


def draws(scale):
    """Three starts with entries N(0, scale²)."""
    return [
        gflow.models.SymmetricFactorisation.normal(4, scale, key=jax.random.key(seed)) for seed in range(3)
    ]


def run(quick: bool) -> Entry:
    """Distances to the solution of rank one for R ≤ 2, and the trace for R = 3, on three seeds."""
    checks = []
    measure = np.zeros((3, 4, 4))
    measure[np.arange(3), SEEN[:, 0], SEEN[:, 1]] = 1
    optimum, _ = smallest_trace((measure + measure.transpose(0, 2, 1)) / 2, entries(2.0)[1])
    multiple = [gflow.models.SymmetricFactorisation.identity(4, 1e-10)] * 3  # the same shape as three draws
    far = lambda found, ratio: max(error(matrix, rank_one(ratio)) for matrix in found)
    found = complete(2.0, multiple, 1e-10)
    what = "R = 2, U = αI, α = 1e-10: relative distance to the solution of rank one"
    checks.append(below(what, far(found, 2.0), 1e-5))
    least = np.trace(found, axis1=1, axis2=2).min() - optimum
    checks.append(above("its trace − the smallest trace by a semidefinite program, 2 in theory", least, 1.99))
    for ratio in (2.0, 1.5):
        distance = far(complete(ratio, draws(1e-10), 1e-10), ratio)
        what = f"R = {ratio:g}, U ~ N(0, α²), α = 1e-10: the same distance, worst of 3"
        checks.append(below(what, distance, 1e-5))
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
    limits = [complete(3.0, draws(scale), scale) for scale in scales]
    traces = np.array([np.trace(found, axis1=1, axis2=2) for found in limits])
    rises = bool(np.all(np.diff(traces, axis=0) > 0) and traces.max() < 20)
    checks.append(holds("R = 3: the trace rises towards 20 as α falls, on 3 seeds", rises))

    def draw(figure):
        axes = figure.subplots()
        for seed, size in enumerate((8, 5, 3)):  # two of them nearly coincide
            axes.semilogx(scales, traces[:, seed], "o-", ms=size, label=f"seed {seed}")
        axes.axhline(20, color="k", lw=0.8, ls="--", label="rank one: 20")
        axes.axhline(12, color="k", lw=0.8, ls=":", label="smallest nuclear norm: 12")
        axes.set(xlabel=r"scale $\alpha$", ylabel="trace of the limit, R = 3")
        figure.legend(loc="outside right center")

    return Entry(
        "Where the smallest nuclear norm and the lowest rank disagree, the flow of UUᵀ from an "
        "infinitesimal start goes to the lowest rank.",
        "Li, Luo and Lyu, ICLR 2021, arXiv:2012.09839",
        checks,
        draw,
    )
