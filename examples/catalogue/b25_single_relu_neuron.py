"""B25: a single ReLU neuron ends at a solution at most twice as long as the shortest."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below
from references import shortest_relu

import gflow


class OnData(eqx.Module):
    """A neuron w with a data set of its own."""

    w: jax.Array
    x: jax.Array
    y: jax.Array


def residuals(model):
    """relu(Xw) − y."""
    return jax.nn.relu(model.x @ model.w) - model.y


def loss(model, data):
    """½ ‖relu(Xw) − y‖²."""
    del data
    return jnp.sum(residuals(model) ** 2) / 2


def ratios(seed, count, n, size):
    """‖w∞‖ / ‖w*‖ of the data sets that the flow from 1e-7 Xᵀy comes to fit."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, n, size))
    y = np.maximum(np.einsum("kij,kj->ki", x, random.normal(size=(count, size))), 0)
    some = y.max(axis=1) > 0  # of nothing but zeros there is nothing to learn
    x, y = x[some], y[some]
    start = OnData(1e-7 * np.einsum("kij,ki->kj", x, y), x, y)
    end = gflow.integrate(
        jax.tree.map(jnp.asarray, start),
        None,
        1000.0,
        loss=loss,
        trainable=OnData(True, False, False),
        ensemble=True,
        rtol=1e-7,
        atol=1e-10,
        save_at=2,
        max_steps=20_000,
        throw=False,
    ).model
    left = np.abs(np.maximum(np.einsum("kij,kj->ki", x, end.w), 0) - y).max(axis=1)
    fitted = np.flatnonzero(left < 1e-5)
    lengths = np.linalg.norm(np.asarray(end.w), axis=1)
    found = [lengths[k] / np.linalg.norm(shortest_relu(x[k], y[k])) for k in fitted]
    return np.array(found), len(fitted) / len(x)


def run(quick: bool) -> Entry:
    """Ratios over Gaussian data sets, on three seeds."""
    count = 15 if quick else 50
    kinds = {"n = 4, d = 8": (4, 8), "n = 3, d = 3": (3, 3)}
    found = {name: [ratios(seed, count, *shape) for seed in range(3)] for name, shape in kinds.items()}
    checks = []
    for name, results in found.items():
        every = np.concatenate([lengths for lengths, _ in results])
        checks += [
            below(f"{name}: ‖w∞‖/‖w*‖, largest of all data sets fitted, 3 seeds", every.max(), 2),
            above(f"{name}: the same, least", every.min(), 1 - 1e-4),
            above(f"{name}: share of data sets fitted, least of 3 seeds", min(s for _, s in results), 0.5),
        ]

    def draw(figure):
        for axes, (name, results) in zip(figure.subplots(1, 2), found.items(), strict=True):
            every = np.sort(np.concatenate([lengths for lengths, _ in results]))
            axes.semilogy(np.maximum(every - 1, 1e-8), ".", label="data sets")
            axes.axhline(1, color="k", lw=0.8, label="bound")
            axes.set(title=name, xlabel="data sets, sorted", ylabel=r"$\|w_\infty\|/\|w^*\|-1$")
            axes.legend()

    return Entry(
        "A single ReLU neuron from a start near 0 that comes to fit its data ends at a solution at most "
        "twice as long as the shortest.",
        "Vardi and Shamir, COLT 2021, arXiv:2012.05156",
        checks,
        draw,
    )
