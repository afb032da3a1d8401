"""B37: gradient flow of deep linear networks conserves their balancedness; descent only in the limit."""

import jax
import numpy as np
from entry import Entry, below, close

import gflow

TOLERANCES, RATES = (1e-6, 1e-9, 1e-12), np.array([0.01, 0.005, 0.0025])


def balance(model, _):
    """W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ."""
    return gflow.bias.balancedness(model.matrices)


def run(quick: bool) -> Entry:
    """Drifts against the tolerance of the flow and the step of descent, on three seeds."""
    flows, descents = np.zeros((3, 3)), np.zeros((3, 3))
    for seed in range(3):
        random = np.random.default_rng(seed)
        data = random.normal(size=(20, 5)), random.normal(size=(20, 2))
        model = gflow.models.DeepLinear.normal((5, 6, 4, 2), 0.5, key=jax.random.key(seed))
        observe = [gflow.observe.Conserved("drift", balance, 1.0)]
        for i, rtol in enumerate(TOLERANCES):
            run_ = gflow.integrate(model, data, 10.0, rtol=rtol, atol=rtol, save_at=11, observe=observe)
            flows[seed, i] = run_["drift"].max()
        for i, rate in enumerate(RATES):
            run_ = gflow.descend(
                model, data, float(rate), round(4 / rate), save_every=round(4 / rate), observe=observe
            )
            descents[seed, i] = run_["drift"][-1]
    orders = np.log2(descents[:, :-1] / descents[:, 1:])
    checks = [
        below(f"flow, rtol = {rtol:g}: largest drift, worst of 3 seeds", flows[:, i].max(), bound)
        for i, (rtol, bound) in enumerate(zip(TOLERANCES, (1e-4, 1e-7, 1e-10), strict=True))
    ]
    worst = orders[:, -1][np.argmax(np.abs(orders[:, -1] - 1))]
    checks.append(close("descent: order of the drift in the step size, worst of 3 seeds", worst, 1.0, 0.1))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        labels = [f"seed {seed}" for seed in range(3)]
        left.loglog(TOLERANCES, flows.T, "o-", ms=4, label=labels)
        left.set(xlabel="rtol of the flow", ylabel="drift")
        right.loglog(RATES, descents.T, "o-", ms=4)
        right.set(xlabel="learning rate of descent", ylabel="drift", xticks=RATES)
        right.set_xticklabels([f"{rate:g}" for rate in RATES])
        right.minorticks_off()
        left.legend()

    return Entry(
        "Gradient flow conserves the balancedness of neighbouring layers; gradient descent drifts "
        "in proportion to its step.",
        "Du, Hu and Lee, NeurIPS 2018, arXiv:1806.00900",
        checks,
        draw,
    )
