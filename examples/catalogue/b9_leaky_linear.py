"""B9: leaky ReLU networks on symmetric data become linear, with the largest margin."""

import jax
import numpy as np
from entry import Entry, below
from references import max_margin
from separable import SEEDS, direction_distance, follow, nearest, separated, teacher, worst

import gflow
from gflow import bias

INITS = (1.0, 0.1, 1e-3)
PROBES = np.random.default_rng(9).normal(size=(3000, 3))
OBSERVE = {
    "fit": lambda model, _: bias.linear_fit(model, PROBES),
    "nonlinearity": lambda model, _: bias.nonlinearity(model, PROBES),
}


def run(quick: bool) -> Entry:
    """The linear function closest to the network, and how far the network is from it."""
    del quick
    runs = {}
    for seed in SEEDS:
        x, y = teacher(seed, 20, 3)
        x, y = np.vstack([x, -x]), np.append(y, -y)
        separator = max_margin(y[:, None] * x)
        for init in INITS:
            model = gflow.models.TwoLayer.balanced(3, 8, init, key=jax.random.key(seed), slope=0.3)
            flow = follow(model, (x, y), 4e4, np.linspace(0, 12, 241), observe=OBSERVE, atol=1e-9 * init)
            runs[init, seed] = flow, np.array([direction_distance(fit, separator) for fit in flow["fit"]])
    at = {key: nearest(flow, 2e3) for key, (flow, _) in runs.items()}

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for color, init in zip(("C0", "C1", "C2"), INITS, strict=True):
            for seed in SEEDS:
                flow, distance = runs[init, seed]
                late = separated(flow)
                label = f"scale {init:g}" if seed == 0 else None
                left.loglog(-flow["log_loss"][late], distance[late], color=color, lw=1, label=label)
                curved = np.maximum(flow["nonlinearity"][late], 1e-16)
                right.loglog(-flow["log_loss"][late], curved, color=color, lw=1)
        left.set(xlabel=r"$-\log L$", ylabel=r"distance of the linear fit to $\hat w$")
        left.legend(fontsize=8)
        right.set(xlabel=r"$-\log L$", ylabel=r"$1-R^2$ of the linear fit")

    return Entry(
        "On separable data symmetric about 0 a leaky ReLU network of two layers becomes a linear function, "
        "and that of the largest ℓ₂ margin.",
        "Lyu, Li, Wang and Arora, NeurIPS 2021, arXiv:2110.13905",
        [
            below(
                "distance of the linear fit to the separator at −log L = 2e3",
                worst(distance[at[key]] for key, (_, distance) in runs.items()),
                2e-2,
            ),
            below(
                "1 − R² of the linear fit there",
                worst(flow["nonlinearity"][at[key]] for key, (flow, _) in runs.items()),
                1e-4,
            ),
        ],
        draw,
    )
