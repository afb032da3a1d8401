"""B24: a neuron with a strictly increasing activation ends at the closest solution."""

import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, below
from references import closest, inverse_of
from shared import error, interpolate, stack

import gflow

# activation in JAX and in NumPy, and the scale of inputs and targets: tanh saturates
ACTIVATIONS = {
    "z + tanh z": (lambda z: z + jnp.tanh(z), lambda z: z + np.tanh(z), 1.0),
    "leaky ReLU": (lambda z: jax.nn.leaky_relu(z, 0.2), lambda z: np.where(z > 0, z, 0.2 * z), 1.0),
    "tanh": (jnp.tanh, np.tanh, 0.5),
}
SIZE, STARTS = 100, 3  # inputs nearly orthogonal, so that no path slides along a kink


def run(quick: bool) -> Entry:
    """Limits from three starts beside w₀ + X⁺(σ⁻¹(y) − Xw₀), on three seeds."""
    names = [*ACTIVATIONS][:2] if quick else [*ACTIVATIONS]
    worst, shown = dict.fromkeys(names, 0.0), {}
    for name in names:
        activation, plain, scale = ACTIVATIONS[name]
        for seed in range(3):
            random = np.random.default_rng(seed)
            x = scale * random.normal(size=(4, SIZE)) / SIZE**0.5
            y = scale * random.uniform(0.5, 1.5, 4) * random.choice([-1, 1], 4)
            starts = random.normal(size=(STARTS, SIZE))
            neurons = stack([gflow.models.Neuron(jnp.asarray(w), None, activation) for w in starts])
            found = np.asarray(interpolate(neurons, (x, y), level=1e-10).w)
            exact = np.array([closest(x, inverse_of(plain, y), w) for w in starts])
            worst[name] = max(worst[name], *(error(*pair) for pair in zip(found, exact, strict=True)))
            shown.setdefault(name, []).append((exact, found))
    checks = [
        below(f"{name}: error of the limit, worst of 3 seeds and {STARTS} starts", worst[name], 1e-8)
        for name in names
    ]

    def draw(figure):
        for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
            exact, found = shown[name][0]
            axes.plot(exact.ravel(), found.ravel(), ".", ms=3)
            axes.plot([-3, 3], [-3, 3], "k-", lw=0.6)
            axes.set(title=name, xlabel=r"entries of $w_0+X^+(\sigma^{-1}(y)-Xw_0)$")
        figure.axes[0].set_ylabel(r"$w_i$ of the flow")

    return Entry(
        "A neuron σ(w·x) with a strictly increasing activation ends at the solution closest to its start in "
        "the ℓ₂ norm, w₀ + X⁺(σ⁻¹(y) − Xw₀).",
        "Vardi, Communications of the ACM 2023, arXiv:2208.12591",
        checks,
        draw,
    )
