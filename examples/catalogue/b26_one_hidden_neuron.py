"""B26: one hidden neuron with balanced layers ends at the solution closest in a Bregman divergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, below, holds
from references import neuron_limit
from shared import error, interpolate, stack

import gflow

SLOPES = {"linear": 1.0, "leaky ReLU, slope 0.3": 0.3}
SCALES = np.array([0.1, 0.5, 2.0])
SIZE = 100  # inputs nearly orthogonal, so that no path slides along a kink


def slope_of(beta):
    """∇R = (3/2) ‖β‖^{−1/2} β of R = ‖β‖^{3/2}."""
    return 1.5 * beta / np.linalg.norm(beta) ** 0.5


def run(quick: bool) -> Entry:
    """Limits beside the solution of the convex program, and its optimality conditions, on three seeds."""
    del quick
    worst, kkt = dict.fromkeys(SLOPES, 0.0), dict.fromkeys(SLOPES, 0.0)
    least, shown = np.inf, {}
    for name, slope in SLOPES.items():
        activation = functools.partial(jax.nn.leaky_relu, negative_slope=slope)
        for seed in range(3):
            random = np.random.default_rng(seed)
            x = random.normal(size=(4, SIZE)) / SIZE**0.5
            y = random.uniform(0.5, 1.5, 4) * random.choice([-1, 1], 4)
            w = random.normal(size=SIZE)
            starts = SCALES[:, None] * w / np.linalg.norm(w)
            neurons = interpolate(
                stack([gflow.models.Neuron(jnp.asarray(w), jnp.linalg.norm(w), activation) for w in starts]),
                (x, y),
            )
            a = np.asarray(neurons.a)
            least = min(least, a.min())
            shown[name, seed] = []
            for end, start in zip(a[:, None] * np.asarray(neurons.w), starts, strict=True):
                begin = np.linalg.norm(start) * start
                exact = neuron_limit(x, np.where(y > 0, y, y / slope), begin)
                worst[name] = max(worst[name], error(end, exact))
                move = slope_of(end) - slope_of(begin)
                outside = move - x.T @ np.linalg.lstsq(x.T, move, rcond=None)[0]
                kkt[name] = max(kkt[name], np.linalg.norm(outside) / np.linalg.norm(move))
                shown[name, seed].append((exact, end))
    checks = [
        below(f"{name}: error to the convex program, worst of 3 seeds and β₀", worst[name], 1e-6)
        for name in SLOPES
    ]
    checks += [
        below(f"{name}: part of ∇R(β) − ∇R(β₀) outside of the span of the xᵢ, worst", kkt[name], 1e-6)
        for name in SLOPES
    ]
    checks.append(holds("a > 0 at all ends", bool(least > 0)))

    def draw(figure):
        for axes, name in zip(figure.subplots(1, len(SLOPES)), SLOPES, strict=True):
            for scale, (exact, end) in zip(SCALES, shown[name, 0], strict=True):
                axes.plot(exact, end, ".", ms=4, label=rf"$\|w_0\|={scale:g}$")
            axes.axline((0, 0), slope=1, color="k", lw=0.6)
            axes.set(title=name, xlabel=r"$\beta_i$ of the convex program", ylabel=r"$\beta_i$ of the flow")
            axes.legend(fontsize=8)

    return Entry(
        "One hidden neuron a φ(w·x) with a = ‖w‖ ends at the β = aw that minimises "
        "‖β‖^{3/2} − (3/2) ‖β₀‖^{−1/2} β₀·β among those that fit the data.",
        "Azulay et al., ICML 2021, arXiv:2102.09769",
        checks,
        draw,
    )
