"""The problems of the race of solvers: gradient flows from nonstiff to very stiff."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _networks import digits_1000

import gflow


class Stiff(NamedTuple):
    """A gradient flow up to a horizon."""

    name: str
    what: str
    problem: gflow.Problem
    horizon: float
    costly: bool = False  # for the default solver and gradient descent alone


def problems() -> list[Stiff]:
    """All of the race."""
    squared, entropy = gflow.losses.Squared(), gflow.losses.CrossEntropy()
    return [
        digits_network(100.0, entropy, "P2, T=100"),
        digits_network(75.0, squared, "P1, T=75"),
        digits_network(400.0, squared, "P1, T=400"),
        factorisation(15.0, "P3, T=15"),
        factorisation(150.0, "P3, T=150"),
        factorisation(1500.0, "P3, T=1500"),
        factorisation(25.0, "P3, scale 0.01, T=25", 0.01),
        convolutional(20.0, "conv, T=20"),
        wine_network(200.0, "wine, T=200"),
        separable(1e5, "logistic, T=1e5"),
        mnist_network(1000, 40.0, "P4, T=40"),
        mnist_network(5000, 40.0, "P4, all 5000, T=40", costly=True),
    ]


def digits_network(horizon: float, loss: gflow.losses.AbstractLoss, name: str) -> Stiff:
    """The first 1000 digits, each pixel standardised, and a tanh network 64-64-64-10."""
    model, x, y = digits_1000()
    targets = jax.nn.one_hot(y, 10) if isinstance(loss, gflow.losses.Squared) else jnp.asarray(y)
    what = f"digits, tanh network, {type(loss).__name__}"
    return Stiff(name, what, gflow.Problem(model, (x, targets), loss), horizon)


def factorisation(horizon: float, name: str, scale: float = 0.05) -> Stiff:
    """A product of three 50 x 50 matrices towards a target with singular values 12, 6, 4."""
    random = np.random.default_rng(0)
    u, v = (np.linalg.qr(random.normal(size=(50, 50)))[0] for _ in range(2))
    target = jnp.asarray((u[:, :3] * np.array([12.0, 6.0, 4.0])) @ v[:, :3].T)
    model = {"w": jnp.asarray(random.normal(size=(3, 50, 50)) * scale)}

    def loss(model, data):
        first, second, third = model["w"]
        return 0.5 * jnp.sum((third @ second @ first - data) ** 2)

    what = f"product of three matrices, initial scale {scale:g}"
    return Stiff(name, what, gflow.Problem(model, target, loss), horizon)


def mnist_network(count: int, horizon: float, name: str, costly: bool = False) -> Stiff:
    """MNIST in a fixed random order, centred by pixel, and a tanh network 784-200-200-10."""
    x, y = (np.asarray(a) for a in gflow.data.mnist5k())
    chosen = np.random.default_rng(0).permutation(len(x))[:count]
    x, y = x[chosen].astype(np.float64), y[chosen]
    x /= x.max()
    x = (x - x.mean(axis=0)) / x.std()
    model = eqx.nn.MLP(784, 10, 200, 2, activation=jnp.tanh, key=jax.random.PRNGKey(0))
    problem = gflow.Problem(model, (jnp.asarray(x), jax.nn.one_hot(y, 10)), gflow.losses.Squared())
    return Stiff(name, f"{count} MNIST digits, tanh network, Squared", problem, horizon, costly)


def convolutional(horizon: float, name: str) -> Stiff:
    """The first 300 digits and a small convolutional network with softplus."""
    x, y = (np.asarray(a)[:300] for a in gflow.data.digits())
    x = (x - x.mean()) / x.std()
    keys = jax.random.split(jax.random.PRNGKey(1), 3)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 6, 3, stride=2, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.softplus),
            eqx.nn.Conv2d(6, 12, 3, stride=2, padding=1, key=keys[1]),
            eqx.nn.Lambda(jax.nn.softplus),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(48, 10, key=keys[2]),
        ]
    )
    data = jnp.asarray(x.reshape(-1, 1, 8, 8)), jax.nn.one_hot(y, 10)
    what = "digits, convolutional network, Squared"
    return Stiff(name, what, gflow.Problem(model, data, gflow.losses.Squared()), horizon)


def wine_network(horizon: float, name: str) -> Stiff:
    """The wines, each column standardised, and a SiLU network 13-24-24-3.

    No constant of a solver was chosen by it, but for that in the tolerances of EXPRB42.
    """
    x, y = (np.asarray(a) for a in gflow.data.wine())
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    model = eqx.nn.MLP(13, 3, 24, 2, activation=jax.nn.silu, key=jax.random.PRNGKey(2))
    problem = gflow.Problem(model, (jnp.asarray(x), jax.nn.one_hot(y, 3)), gflow.losses.Squared())
    return Stiff(name, "wines, SiLU network, Squared", problem, horizon)


def separable(horizon: float, name: str) -> Stiff:
    """Logistic regression on separable points in log-loss time."""
    random = np.random.default_rng(0)
    signs = np.where(np.arange(40) % 2 == 0, 1.0, -1.0)
    apart = np.array([1.0, 0.5, 0, 0, 0])
    points = random.normal(size=(40, 5)) + 3.0 * signs[:, None] * apart
    keep = signs * (points @ apart) > 0.3
    linear = eqx.nn.Linear(5, "scalar", use_bias=False, key=jax.random.PRNGKey(0))
    model = eqx.tree_at(lambda m: m.weight, linear, jnp.zeros((1, 5)))
    loss = gflow.losses.Log(gflow.losses.Logistic())
    problem = gflow.Problem(model, (jnp.asarray(points[keep]), jnp.asarray(signs[keep])), loss)
    return Stiff(name, "separable logistic regression in log-loss time", problem, horizon)
