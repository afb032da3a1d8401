"""B24: a neuron with a strictly increasing activation goes to the closest solution."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, below
from references import closest, inverse_of
from shared import error, interpolate, stack

import gflow

ACTIVATIONS = {
    "z + tanh z": (lambda z: z + jnp.tanh(z), lambda z: z + np.tanh(z)),
    "leaky ReLU 0.2": (lambda z: jax.nn.leaky_relu(z, 0.2), lambda z: np.maximum(z, 0.2 * z)),
    "tanh": (jnp.tanh, np.tanh),
}
# Where both sides of a kink push towards it the flow slides along it, and step size control would halt.
STEPS = {"leaky ReLU 0.2": dict(controller=diffrax.ConstantStepSize(), dt0=0.02)}


def run(quick: bool) -> Entry:
    """Distances of the limits to w₀ + X⁺(φ⁻¹(y) − Xw₀), on three seeds."""
    worst = {}
    for name, (activation, reference) in ACTIVATIONS.items():
        for seed in range(3):
            random = np.random.default_rng(seed)
            x, truth, start = (random.normal(size=size) for size in ((5, 12), 12, 12))
            x = x / 2  # tanh saturates on larger ones
            y = reference(x @ truth)
            neurons = stack([gflow.models.Neuron(jnp.asarray(start), activation=activation)])
            (found,) = np.asarray(interpolate(neurons, (x, y), level=1e-11, **STEPS.get(name, {})).w)
            distance = error(found, closest(x, inverse_of(reference, y), start))
            worst[name] = max(worst.get(name, 0.0), distance)
    checks = [
        below(f"{name}: relative distance to the closest solution, worst of 3 seeds", value, 1e-8)
        for name, value in worst.items()
    ]

    def draw(figure):
        axes = figure.subplots()
        axes.barh(list(worst), list(worst.values()))
        axes.axvline(1e-8, color="k", ls="--", lw=0.8, label="tolerance")
        axes.set(xscale="log", xlabel="relative distance to the closest solution")
        axes.legend()

    return Entry(
        "A single neuron with a strictly increasing activation goes to the solution closest to its start.",
        "Vardi and Shamir, COLT 2021, arXiv:2012.05156",
        checks,
        draw,
    )
