"""B25: the norm to which a ReLU neuron converges is at most twice the smallest one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below
from references import smallest_relu

import gflow


class Sample(eqx.Module):
    """A neuron with examples of its own, so that members differ in them."""

    neuron: gflow.models.Neuron
    x: jax.Array
    y: jax.Array


def loss(sample, _):
    """½ Σ (φ(w·xᵢ) − yᵢ)²."""
    return jnp.sum((jax.vmap(sample.neuron)(sample.x) - sample.y) ** 2) / 2


def run(quick: bool) -> Entry:
    """Ratios of norms on Gaussian sets of 4 examples in 8 dimensions."""
    random = np.random.default_rng(0)
    sets = 20 if quick else 60
    x, truth = random.normal(size=(sets, 4, 8)), random.normal(size=(sets, 8))
    y = np.maximum(np.einsum("sij,sj->si", x, truth), 0)
    fits = y.max(axis=1) > 0
    x, y = x[fits], y[fits]
    # at w = 0 the derivative of ReLU is 0, and nothing would move
    starts = 1e-7 * np.einsum("sij,si->sj", x, y)
    flow = gflow.integrate(
        Sample(gflow.models.Neuron(jnp.asarray(starts)), jnp.asarray(x), jnp.asarray(y)),
        None,
        400.0,
        loss=loss,
        trainable=Sample(True, False, False),
        ensemble=True,
        rtol=1e-8,
        atol=1e-12,
        save_at=2,
    )
    converged = flow.end["loss"] < 1e-12 * np.sum(y**2, axis=1)
    ratios = np.array(
        [
            np.linalg.norm(w) / np.linalg.norm(smallest_relu(a, b))
            for w, a, b in zip(
                np.asarray(flow.model.neuron.w)[converged], x[converged], y[converged], strict=True
            )
        ]
    )
    checks = [
        above(f"share of {len(x)} sets on which the flow fits", np.mean(converged), 0.5),
        below("largest ‖w∞‖/‖w*‖", ratios.max(), 2),
        above("smallest ‖w∞‖/‖w*‖", ratios.min(), 1 - 1e-6),
    ]

    def draw(figure):
        axes = figure.subplots()
        axes.semilogy(np.sort(np.maximum(ratios - 1, 1e-12)), "o", ms=4)
        axes.axhline(1, color="k", ls="--", lw=0.8, label="bound")
        axes.set(xlabel="data set, sorted", ylabel=r"$\|w_\infty\|/\|w^*\|-1$")
        axes.legend()

    return Entry(
        "A ReLU neuron from a tiny start that fits its data has at most twice the smallest norm that does.",
        "Vardi and Shamir, COLT 2021, arXiv:2012.05156",
        checks,
        draw,
    )
