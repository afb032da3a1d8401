"""B37: what the flow of a deep linear network conserves, and how descent with a finite step loses it."""

import jax
import numpy as np
from entry import Entry, below, close
from shared import regression, sum_of_squares

import gflow

TOLERANCES, T_MAX = (1e-6, 1e-9, 1e-12), 20.0


def balance(model, _):
    """Wⱼ₊₁ᵀWⱼ₊₁ − WⱼWⱼᵀ of both pairs of layers."""
    return gflow.bias.balancedness(model.matrices)


def watched(limit):
    """The drift of the balance, with a warning beyond `limit`."""
    return [gflow.observe.Conserved("drift", balance, limit)]


def run(quick: bool) -> Entry:
    """Drift over rtol and over η, on three seeds, each with data and a start of its own."""
    rates = 0.02 / 2.0 ** np.arange(3 if quick else 5)
    flows = {rtol: [] for rtol in TOLERANCES}
    drifts = np.zeros((3, len(rates)))
    warned = 0
    for seed in range(3):
        x, y = regression(seed)
        x = x / np.linalg.norm(x, 2)
        model = gflow.models.DeepLinear.normal((12, 4, 4, 1), 0.5, key=jax.random.key(seed))
        for rtol in TOLERANCES:
            flow = gflow.integrate(
                model,
                (x, y),
                T_MAX,
                loss=sum_of_squares,
                rtol=rtol,
                atol=rtol / 1000,
                observe=watched(10 * rtol),
            )
            flows[rtol].append(flow)
            warned += len(flow.warnings)
        for i, rate in enumerate(rates):
            steps = round(T_MAX / rate)
            descent = gflow.descend(
                model, (x, y), rate, steps, loss=sum_of_squares, save_every=steps, observe=watched(1.0)
            )
            drifts[seed, i] = descent["drift"][-1]
    worst = {rtol: max(flow["drift"].max() for flow in flows[rtol]) for rtol in TOLERANCES}
    orders = np.log2(drifts[:, :-1] / drifts[:, 1:])
    order = orders.flat[np.abs(orders - 1).argmax()]
    checks = [
        below(f"flow, rtol = {rtol:g}: largest drift, worst of 3 seeds", worst[rtol], 10 * rtol)
        for rtol in TOLERANCES
    ]
    checks += [
        below("flow: warnings of a drift beyond 10 rtol", warned, 0),
        close(
            "descent: order of the drift in η, worst of 3 seeds", order[np.abs(order - 1).argmax()], 1, 0.06
        ),
    ]

    def draw(figure):
        along, steps = figure.subplots(1, 2)
        for rtol in TOLERANCES:
            t, drift = flows[rtol][0].t[1:], flows[rtol][0]["drift"][1:]
            along.semilogy(t, drift, label=f"rtol = {rtol:g}")
        along.set(xlabel="t", ylabel=r"drift of $W_{j+1}^TW_{j+1}-W_jW_j^T$", ylim=(1e-16, 1e-3))
        along.legend(fontsize=8, ncols=2)
        for seed in range(3):
            steps.loglog(rates, drifts[seed], "o-", ms=4, label=f"seed {seed}")
        steps.loglog(rates, drifts.min() * rates / rates[-1] / 2, "k--", lw=0.8, label=r"$\propto\eta$")
        steps.set(xlabel=r"step $\eta$ of descent", ylabel=f"drift at t = {T_MAX:g}")
        steps.set_xticks(rates, [f"{rate:g}" for rate in rates], minor=False)
        steps.set_xticks([], minor=True)
        steps.legend(fontsize=8)

    return Entry(
        "Gradient flow conserves Wⱼ₊₁ᵀWⱼ₊₁ − WⱼWⱼᵀ of neighbouring layers of a deep linear network; "
        "gradient descent loses it in proportion to its step.",
        "Du, Hu and Lee, NeurIPS 2018, arXiv:1806.00900",
        checks,
        draw,
    )
