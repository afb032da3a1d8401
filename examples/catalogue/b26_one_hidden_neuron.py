"""B26: one hidden neuron with its output weight minimises a potential of power 3/2."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below
from references import hidden_neuron_limit
from shared import error, interpolate, stack

import gflow

SLOPES = {"linear": 1.0, "leaky ReLU 0.3": 0.3}
ACTIVATIONS = {"linear": lambda z: z, "leaky ReLU 0.3": lambda z: jax.nn.leaky_relu(z, 0.3)}
# A leaky neuron may slide along a kink, where step size control would grind to a halt.
STEPS = {"linear": {}, "leaky ReLU 0.3": dict(controller=diffrax.ConstantStepSize(), dt0=2e-4)}


def run(quick: bool) -> Entry:
    """Limits of β = aw beside a root of the conditions of optimality, on three seeds."""
    checks, shown = [], {}
    for name, slope in SLOPES.items():
        worst, conditions, least = 0.0, 0.0, np.inf
        for seed in range(3):
            random = np.random.default_rng(seed)
            x, truth, w = (random.normal(size=size) for size in ((5, 12), 12, 12))
            z = x @ truth
            y = np.maximum(z, slope * z)
            w = 2 * w / np.linalg.norm(w)
            neuron = gflow.models.Neuron(jnp.asarray(w), jnp.asarray(2.0), ACTIVATIONS[name])
            end = interpolate(stack([neuron]), (x, y), rtol=1e-11, atol=1e-13, level=1e-10, **STEPS[name])
            a, beta = float(end.a[0]), np.asarray(end.a[0] * end.w[0])
            least = min(least, a)
            limit = hidden_neuron_limit(x, z, 2 * w)
            worst = max(worst, error(beta, limit))
            gradient = lambda b: 1.5 * b / np.sqrt(np.linalg.norm(b))
            change = gradient(beta) - gradient(2 * w)
            outside = change - x.T @ np.linalg.lstsq(x.T, change, rcond=None)[0]
            conditions = max(conditions, np.linalg.norm(outside) / np.linalg.norm(change))
            shown[name] = beta, limit
        checks += [
            below(f"{name}: error of β to the minimiser of the potential, worst of 3 seeds", worst, 1e-6),
            below(f"{name}: part of ∇R(β) − ∇R(β₀) outside of the span of the examples", conditions, 1e-6),
            above(f"{name}: the output weight keeps its sign, least a", least, 0),
        ]

    def draw(figure):
        axes = figure.subplots()
        for (name, (beta, limit)), marker in zip(shown.items(), "os", strict=True):
            axes.plot(limit, beta, marker, ms=4, label=name)
        axes.axline((0, 0), slope=1, color="k", lw=0.8)
        axes.set(xlabel=r"minimiser of the potential", ylabel=r"limit $\beta_i$")
        axes.legend()

    return Entry(
        "A balanced hidden neuron a φ(w·x), linear or leaky, minimises |β|^{3/2} − (3/2)|β₀|^{−1/2}"
        " β₀·β over the β = aw that fit.",
        "Azulay et al., ICML 2021, arXiv:2102.09769",
        checks,
        draw,
    )
