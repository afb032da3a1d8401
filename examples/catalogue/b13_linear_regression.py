"""B13: flow, descent and mirror flow of a linear regression end at the closest solution."""

import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, below
from references import closest, kl_projection, least_squares_path
from shared import error, regression, sum_of_squares

import gflow

SAVE_AT = np.concatenate([np.linspace(0, 0.99, 100), np.linspace(1, 4, 76), np.linspace(5, 60, 56)])
OBSERVE = {"w": lambda model, _: model.effective()[0]}


def linear(w):
    """f(x) = w·x."""
    return gflow.models.DeepLinear([jnp.asarray(w)[None]])


def entropy(params):
    """φ(w) = Σ wᵢ log wᵢ − wᵢ."""
    return jnp.sum(params.matrices[0] * (jnp.log(params.matrices[0]) - 1))


def run(quick: bool) -> Entry:
    """Errors of paths and limits, on three seeds."""
    errors: dict[str, list[float]] = {}

    def note(what, value):
        errors.setdefault(what, []).append(float(value))

    for seed in range(3):
        x, y = regression(seed)
        start = np.random.default_rng(seed + 100).normal(size=12)
        limit = closest(x, y, start)
        flow = gflow.integrate(
            linear(start),
            (x, y),
            60.0,
            loss=sum_of_squares,
            rtol=1e-10,
            atol=1e-13,
            save_at=SAVE_AT,
            observe=OBSERVE,
        )
        if seed == 0:
            shown, exact = flow, least_squares_path(x, y, start, flow.t)
        note(
            "flow: largest error along the path",
            np.abs(flow["w"] - least_squares_path(x, y, start, flow.t)).max(),
        )
        note("flow: relative error of the limit", error(flow["w"][-1], limit))
        rate = 1 / np.linalg.norm(x, 2) ** 2
        descent = gflow.descend(linear(start), (x, y), rate, 3000, loss=sum_of_squares)
        note("gradient descent: relative error of the limit", error(descent.model.effective()[0], limit))
        stochastic = gflow.descend(
            linear(start),
            (x, y),
            0.5 / np.sum(x**2, axis=1).max(),
            20_000,
            minibatch=1,
            key=jax.random.key(seed),
        )
        note(
            "stochastic descent, one example a step: the same", error(stochastic.model.effective()[0], limit)
        )
        random = np.random.default_rng(seed)
        x = random.normal(size=(3, 8))
        y = x @ random.uniform(0.1, 1.0, 8)
        mirror = gflow.integrate(
            linear(np.full(8, 0.3)),
            (x, y),
            500.0,
            loss=sum_of_squares,
            flow=gflow.flows.MirrorFlow(entropy),
            rtol=1e-11,
            atol=1e-15,
            save_at=2,
        )
        projection = kl_projection(x, y, np.full(8, 0.3))
        note(
            "mirror flow of the entropy: error to the KL projection",
            np.abs(mirror.model.effective()[0] - projection).max(),
        )
    checks = [below(what + ", worst of 3 seeds", max(values), 1e-9) for what, values in errors.items()]

    def draw(figure):
        axes = figure.subplots()
        axes.plot(shown.t, shown["w"], lw=1)
        axes.plot(shown.t[::4], exact[::4], "k.", ms=3)
        axes.set(xlabel="t", ylabel="$w_i$ (dots: closed form)", xlim=(0, 4))

    return Entry(
        "On a linear regression gradient flow, gradient descent and stochastic gradient descent end"
        " at the solution closest to the start in the ℓ₂ norm, and mirror flow at the closest in "
        "its Bregman divergence.",
        "Gunasekar, Lee, Soudry and Srebro, ICML 2018, arXiv:1802.08246",
        checks,
        draw,
    )
