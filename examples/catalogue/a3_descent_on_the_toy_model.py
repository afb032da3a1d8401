"""A3: gradient descent on the toy model: when it is stable, and that its thresholds are those of the flow."""

import jax.numpy as jnp
import numpy as np
from a1_toy_model import EFFECTIVE, toy_loss
from a2_depth_separation import OBSERVE, F, Pair, bisect, pair_loss
from entry import Entry, below, holds
from references import toy_threshold

import gflow

S = 0.1


def smaller_value(depth, product, ratios, log_start):
    """σⱼ at the first step at which σᵢ is at least f of its target r, for ηr^{2−2/N} = `product`."""
    u = jnp.repeat(jnp.exp(jnp.ravel(log_start) / depth)[:, None], 2, axis=1)
    target = jnp.stack([jnp.ravel(ratios), jnp.ones(ratios.size)], axis=1)
    descent = gflow.descend(
        Pair(gflow.models.Diagonal(u, None, depth), target),
        None,
        product / float(ratios.flat[0]) ** (2 - 2 / depth),
        100_000,
        loss=pair_loss,
        trainable=Pair(True, False),
        ensemble=True,
        save_every=100_000,
        observe=OBSERVE,
        stop=gflow.stop.Crosses("larger", F),
    )
    return descent.end["smaller"].reshape(ratios.shape)


def run(quick: bool) -> Entry:
    """The four regimes of the step at depth 2, and thresholds of descent over those of the flow."""
    paths = {}
    for product in (0.99, 1.01, 1.9, 2.1):
        model = gflow.models.Diagonal.constant(1, 0.05**0.5, 2, signed=False)
        target = np.array([3.0])
        descent = gflow.descend(
            model, target, product / target[0], 300, loss=toy_loss, observe=EFFECTIVE, save_every=1
        )
        paths[product] = descent["sigma"][:, 0] / target[0]
    rises = lambda path: bool(np.all(np.diff(path) >= -1e-14))
    cycle = paths[2.1][-3:]
    checks = [
        holds(
            "N = 2, ησ* = 0.99: σ rises all the way to σ*", rises(paths[0.99]) and paths[0.99][-1] > 1 - 1e-9
        ),
        holds("N = 2, ησ* = 1.01: σ overshoots", not rises(paths[1.01]) and paths[1.01].max() > 1 + 1e-9),
        below("N = 2, ησ* = 1.9: |σ/σ* − 1| at the end", abs(paths[1.9][-1] - 1), 1e-9),
        holds(
            "N = 2, ησ* = 2.1: a cycle of two steps around σ*",
            bool(abs(cycle[0] - cycle[2]) < 1e-9 and min(cycle) < 0.95 and max(cycle) > 1.05),
        ),
    ]
    products = (0.3, 0.1, 0.03, 0.01)
    shown = {}
    for depth, ratio in ((2, 2.0), (3, 1.5), (4, 1.5))[: 2 if quick else 3]:
        exact = np.array([toy_threshold(ratio, depth, S, F)])
        for product in products[2 if quick else 0 :]:
            measure = lambda ratios, log, d=depth, p=product: smaller_value(d, p, ratios, log)
            found = bisect(measure, np.array([ratio]), exact - 0.2, exact + 0.2, rounds=4)
            shown[depth, product] = np.exp(found - exact)[0]
    for depth in {depth for depth, _ in shown}:
        worst = max(abs(shown[depth, product] - 1) for product in products[2:])
        checks.append(below(f"N = {depth}: |σ_th of descent / that of flow − 1|, ηL ≤ 0.03", worst, 0.02))

    def draw(figure):
        regimes, ratios = figure.subplots(1, 2)
        for product, path in paths.items():
            regimes.plot(path[:60], lw=1, label=rf"$\eta\sigma^*={product}$")
        regimes.set(xlabel="step", ylabel=r"$\sigma/\sigma^*$")
        regimes.legend(fontsize=8)
        for depth in {depth for depth, _ in shown}:
            points = [(product, value) for (d, product), value in shown.items() if d == depth]
            ratios.semilogx(*zip(*points, strict=True), "o-", ms=4, label=f"N = {depth}")
        ratios.axhline(1, color="k", lw=0.8)
        ratios.set(xlabel=r"$\eta L$", ylabel=r"$\sigma_{th}$ of descent / of flow")
        ratios.legend()

    return Entry(
        "Gradient descent on the toy model rises to σ* without overshoot iff ησ* ≤ 1 at depth 2, is"
        " stable iff ησ*^{2−2/N} < 2, and has the flow's thresholds of incremental learning as η → "
        "0.",
        "Gissin, Shalev-Shwartz and Daniely, ICLR 2020, arXiv:1909.12051",
        checks,
        draw,
    )
