"""B10: leaky ReLU networks with a linear teacher gather their neurons in two directions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below
from separable import SEEDS, follow_by_euler, teacher, worst

import gflow
from gflow import bias

PROBES = np.random.default_rng(9).normal(size=(4000, 10))


def network(seed: int, width: int) -> gflow.models.TwoLayer:
    """Small first layer; the second is ±1/√width and stays so."""
    v = np.where(np.arange(width) % 2, -1, 1) / width**0.5
    w = 1e-3 * jax.random.normal(jax.random.key(seed), (width, 10))
    return gflow.models.TwoLayer(w, jnp.asarray(v), slope=0.2)


def run(quick: bool) -> Entry:
    """Cosines of the weights within each sign of the second layer, and the signs of the function.

    Quick: one data set, with steps four times as long.
    """
    flows, cosines, wrong = [], [], []
    seeds = SEEDS[:1] if quick else SEEDS
    for seed in seeds:
        model = network(seed, 20)
        first = eqx.tree_at(lambda m: m.w, jax.tree.map(lambda _: False, model), True)
        observe = {"w": lambda model, _: model.w}
        flow = follow_by_euler(
            model,
            teacher(seed, 40, 10, gap=1.0),
            100,
            np.linspace(0, 500, 1001),
            step=4e-3 if quick else 1e-3,
            trainable=first,
            observe=observe,
        )
        flows.append(flow)
        cosines.append([np.min(within(flow["w"][-1][i::2])) for i in (0, 1)])
        f, fit = jax.vmap(flow.model)(PROBES), PROBES @ bias.linear_fit(flow.model, PROBES)
        wrong.append(np.mean(np.sign(f) != np.sign(fit)))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for seed, flow in zip(seeds, flows, strict=True):
            spread = [max(1 - np.min(within(w[i::2])) for i in (0, 1)) for w in flow["w"]]
            left.loglog(flow.s, np.maximum(spread, 1e-16), label=f"data {seed}")
        left.set(xlabel=r"$\tau$", ylabel=r"$1-$ least cosine in a cluster")
        left.legend()
        w = flows[0]["w"][-1]
        axes = np.linalg.svd(w, full_matrices=False)[2][:2]
        for i, color in enumerate(("C0", "C3")):
            right.plot(*(axes @ w[i::2].T), "o", color=color, ms=4, label=rf"$v_j {'<' if i else '>'} 0$")
        right.plot(0, 0, "k+")
        right.set(xlabel="first singular direction of W", ylabel="second")
        right.legend()

    return Entry(
        "With a linear teacher the neurons of a small leaky ReLU network gather in two directions, one for "
        "each sign of the second layer, and its decisions are nearly those of a linear classifier.",
        "Sarussi, Brutzkus and Globerson, ICML 2021, arXiv:2101.02533",
        [
            above("cosine of two neurons of a cluster, least", np.min(cosines), 0.999),
            below("share of signs that differ from those of the best linear fit", worst(wrong), 0.02),
        ],
        draw,
    )


def within(w):
    """Cosines of all pairs of rows."""
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    return unit @ unit.T
