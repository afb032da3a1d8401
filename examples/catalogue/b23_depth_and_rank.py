"""B23: deeper factorisations end at a lower effective rank."""

import numpy as np
from a4_matrix_sensing import sensed
from entry import Entry, above, below

import gflow


def run(quick: bool) -> Entry:
    """Effective ranks where the flows of A4 end, at depths 1, 2 and 3."""
    depths = (1, 2, 3)
    runs = {depth: [sensed(seed, depth)[0] for seed in range(3)] for depth in depths}
    ranks = {depth: np.array([flow["rank"][-1] for flow in flows]) for depth, flows in runs.items()}
    truth = float(gflow.bias.effective_rank(np.diag([12.0, 6.0, 4.0, 3.0])))
    checks = [
        above(f"effective rank, depth {shallow} − depth {deep}, least of 3 seeds", fall.min(), 0)
        for shallow, deep in zip(depths[:-1], depths[1:], strict=True)
        for fall in [ranks[shallow] - ranks[deep]]
    ]
    distance = np.abs(ranks[depths[-1]] - truth).max() / truth
    checks.append(
        below(f"depth {depths[-1]}: relative distance to the rank of the truth, worst", distance, 0.1)
    )

    def draw(figure):
        axes = figure.subplots()
        for depth in depths:
            axes.plot(runs[depth][0].t, runs[depth][0]["rank"], label=f"depth {depth}")
        axes.axhline(truth, color="k", lw=0.8, ls="--", label="truth")
        axes.set(xlabel="t", ylabel="effective rank", xlim=(0, 60))
        axes.legend()

    return Entry(
        "The deeper the factorisation, the lower the effective rank of the matrix that fits the "
        "measurements.",
        "Arora, Cohen, Hu and Luo, NeurIPS 2019, arXiv:1905.13655",
        checks,
        draw,
    )
