"""B8: a KKT point of the maximum-margin problem that is not even locally optimal."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below, close
from separable import follow

import gflow
from gflow import bias
from gflow.clocks import LogNorm

X, Y = np.array([[1.0, 0.25], [-1.0, 0.25]]), np.ones(2)
OBSERVE = {
    "norm": lambda model, _: jnp.sum(model.w**2) + jnp.sum(model.v**2),
    "margin": lambda model, data: jnp.min(bias.margins(model, data)),
    "dead": lambda model, _: model.w[1],
}


def cost(share: float) -> float:
    """‖θ‖² at margin 1 if neurons of their own give each point that share of its margin."""
    slopes = np.linalg.norm(X, axis=1)
    # a neuron along x with output share costs 2 share/‖x‖, and one along (0, 1) 2·(1 − share)/(1/4)
    return 2 * (1 - share) / X[0, 1] + 2 * share * np.sum(1 / slopes)


def run(quick: bool) -> Entry:
    """‖θ‖²/q_min along the flow of two neurons, one of them dead."""
    del quick
    model = gflow.models.TwoLayer(jnp.array([[0.0, 3.0], [0.0, -2.0]]), jnp.array([3.0, 2.0]))
    # L < 0.3/n at the start already, so that log-norm time can begin there
    flow = follow(model, (X, Y), 1e5, np.linspace(0, 6, 121), clock=LogNorm(), observe=OBSERVE, rtol=1e-9)
    ratio = flow["norm"] / flow["margin"]

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.semilogx(-flow["log_loss"], ratio, label="flow")
        left.axhline(8, color="k", ls=":", label="8")
        left.axhline(cost(1), color="C1", ls="--", label="a neuron for each point")
        left.set(xlabel=r"$-\log L$", ylabel=r"$\|\theta\|^2/q_{\min}$")
        left.legend()
        shares = np.linspace(0, 1, 11)
        right.plot(shares, [cost(share) for share in shares], "C1--")
        right.plot(0, ratio[-1], "o", label="flow")
        right.set(xlabel="share of the margin that is moved", ylabel=r"$\|\theta\|^2$ at margin 1")
        right.legend()

    return Entry(
        "The flow of two ReLU neurons goes to a KKT point of the maximum-margin problem that is not a local "
        "optimum: another network has less than half of its squared norm, and all on the way have less.",
        "Vardi, Shamir and Srebro, NeurIPS 2022, arXiv:2110.02732",
        [
            close("‖θ‖²/q_min", ratio[-1], 8, 1e-3),
            above("the same over that of a neuron for each point", ratio[-1] / cost(1), 2),
            below("‖θ‖²/q_min after a thousandth of the margin is moved, less 8", cost(1e-3) - 8, -1e-3),
            below("change of the dead neuron", np.abs(flow["dead"] - [0, -2]).max(), 0),
        ],
        draw,
    )
