"""B7: the flow of a homogeneous network raises its smoothed margin and goes to KKT points."""

import functools

import equinox as eqx
import jax
import numpy as np
from entry import Entry, below, holds
from separable import SEEDS, follow_relu, nearest, worst

import gflow
from gflow import bias

OBSERVE = {
    "smoothed": lambda model, data: bias.parameter_margin(model, data, smooth=True),
    "margin": bias.parameter_margin,
    "stationarity": bias.stationarity,
    "slackness": bias.slackness,
}


def circle() -> tuple[np.ndarray, np.ndarray]:
    """Sixteen points on the unit circle with the sign of x₁x₂ as labels."""
    angles = 2 * np.pi * (np.arange(16) + 0.5) / 16
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return x, np.sign(x[:, 0] * x[:, 1])


def network(width: int, seed: int) -> gflow.models.TwoLayer:
    """Balanced, with Σ‖wⱼ‖² near 1 whatever the width."""
    return gflow.models.TwoLayer.balanced(2, width, width**-0.5, key=jax.random.key(seed))


class Biased(eqx.Module):
    """A network with a bias at its output, which is not homogeneous."""

    network: gflow.models.TwoLayer
    b: jax.Array

    def __call__(self, x):
        return self.network(x) + self.b


@functools.cache  # as another entry looks at the same paths
def path(width: int, seed: int) -> gflow.Trajectory:
    """The flow from the place where L = 0.3/n to −log L = 2e3."""
    start, save_at = network(width, seed), np.linspace(0, 4, 161)
    return follow_relu(start, circle(), 2e3, save_at, rtol=1e-5, observe=OBSERVE)


def refused() -> bool:
    """Whether a margin in parameter space is refused for it."""
    try:
        bias.parameter_margin(Biased(network(12, 0), jax.numpy.array(0.1)), circle())
    except ValueError as error:
        return "homogeneous" in str(error)
    return False


def run(quick: bool) -> Entry:
    """ReLU networks of three widths (one if quick), three initialisations each."""
    widths = (50,) if quick else (12, 50, 200)
    runs = {(width, seed): path(width, seed) for width in widths for seed in SEEDS}
    drops, angles, slacks, below_hard = [], [], [], []
    for flow in runs.values():
        at = nearest(flow, 100)
        # relative, to compare with the tolerance of the solver
        drops.append(np.max(-np.diff(flow["smoothed"])) / flow["smoothed"][-1])
        angles.append(1 - flow["stationarity"][at])
        slacks.append(flow["slackness"][at])
        below_hard.append(np.all(flow["smoothed"] <= flow["margin"]))

    def draw(figure):
        left, middle, right = figure.subplots(1, 3)
        for color, width in zip(("C0", "C1", "C2"), widths, strict=False):
            for seed in SEEDS:
                flow = runs[width, seed]
                label = f"{width} neurons" if seed == 0 else None
                left.semilogx(-flow["log_loss"], flow["smoothed"], color=color, label=label)
                middle.loglog(-flow["log_loss"], 1 - flow["stationarity"], color=color, lw=1)
                right.loglog(-flow["log_loss"], flow["slackness"], color=color, lw=1)
        for axes in (left, middle, right):
            axes.set(xlabel=r"$-\log L$", xlim=(3, None))
        left.set(ylabel=r"$\log(1/nL)/\|\theta\|^2$")
        left.legend(fontsize=8)
        middle.set(ylabel=r"$1-\cos(\theta,-\nabla L)$")
        right.set(ylabel=r"$\sum_i p_i(q_i/q_{\min}-1)$")

    return Entry(
        "Once L < 1/n the smoothed normalised margin of a homogeneous network never falls, and its "
        "parameters go to KKT points of the maximum-margin problem in parameter space.",
        "Lyu and Li, ICLR 2020, arXiv:1906.05890; Ji and Telgarsky, NeurIPS 2020, arXiv:2006.06657",
        [
            below("largest relative fall of the smoothed margin between records", worst(drops), 1e-9),
            holds("the smoothed margin is below the margin", all(below_hard)),
            below("1 − cos(θ, −∇L) at −log L = 100", worst(angles), 1e-3),
            below("slackness Σ pᵢ(qᵢ/q_min − 1) there", worst(slacks), 1e-2),
            holds("with a bias at the output, which is not homogeneous, the margin is refused", refused()),
        ],
        draw,
    )
