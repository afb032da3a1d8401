"""The problems of the race of solvers, their references and their classical rivals."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from _networks import digits_1000
from jax.flatten_util import ravel_pytree

import gflow


class Stiff(NamedTuple):
    """A gradient flow up to a horizon."""

    name: str
    what: str
    problem: gflow.Problem
    horizon: float


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


def mnist_network(count: int, horizon: float, name: str) -> Stiff:
    """MNIST in a fixed random order, centred by pixel, and a tanh network 784-200-200-10."""
    x, y = (np.asarray(a) for a in gflow.data.mnist5k())
    chosen = np.random.default_rng(0).permutation(len(x))[:count]
    x, y = x[chosen].astype(np.float64), y[chosen]
    x /= x.max()
    x = (x - x.mean(axis=0)) / x.std()
    model = eqx.nn.MLP(784, 10, 200, 2, activation=jnp.tanh, key=jax.random.PRNGKey(0))
    problem = gflow.Problem(model, (jnp.asarray(x), jax.nn.one_hot(y, 10)), gflow.losses.Squared())
    return Stiff(name, f"{count} MNIST digits, tanh network, Squared", problem, horizon)


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


def separable(horizon: float, name: str) -> Stiff:
    """Logistic regression on separable points in log-loss time: the loss is ln of the mean loss."""
    random = np.random.default_rng(0)
    signs = np.where(np.arange(40) % 2 == 0, 1.0, -1.0)
    points = random.normal(size=(40, 5)) + 3.0 * signs[:, None] * np.array([1.0, 0.5, 0, 0, 0])
    margins = jnp.asarray(points * signs[:, None])
    keep = jnp.asarray(np.asarray(margins) @ np.array([1.0, 0.5, 0, 0, 0]) > 0.3)
    margins = margins[keep]

    def loss(model, data):
        z = data @ model["w"]
        # ln mean ln(1 + e^-z), also where that underflows
        terms = jnp.where(z > 30, -z, jnp.log(jax.nn.softplus(-jnp.minimum(z, 30))))
        return jax.nn.logsumexp(terms) - jnp.log(len(terms))

    model = {"w": jnp.zeros(5)}
    what = "separable logistic regression in log-loss time"
    return Stiff(name, what, gflow.Problem(model, margins, loss), horizon)


def vector(model: Any) -> np.ndarray:
    """All parameters of a model as one vector."""
    return np.asarray(ravel_pytree(eqx.filter(model, eqx.is_inexact_array))[0])


class Marched(NamedTuple):
    """What a method with steps of a fixed share of the stability limit cost, and where it came to."""

    params: np.ndarray
    gradients: int
    hvps: int
    finished: bool


def march(problem: gflow.Problem, horizon: float, share: float, order: int, limit: int) -> Marched:
    """Steps of `share`/λ(t), with the sharpness λ followed at every step, up to the horizon.

    `order` 1 is gradient descent; 4 is the classical Runge-Kutta method.
    """
    params, t, steps, hvps = problem.params, 0.0, 0, 0
    state = gflow.curvature.start_track(problem)
    while t < horizon and steps * order < limit:
        now = jnp.asarray(t)  # an array, because a Python number would be compiled in
        params, t_new, spent, state = _marched(problem, params, now, horizon, share, state, order)
        t, hvps, steps = float(t_new), hvps + int(spent), steps + 1
        if not np.isfinite(t):
            break
    flat = np.asarray(ravel_pytree(params)[0])
    return Marched(flat, steps * order, hvps, t >= horizon and bool(np.all(np.isfinite(flat))))


@eqx.filter_jit
def _marched(problem, params, t, horizon, share, state, order):
    pairs, state = gflow.curvature.follow(problem, params, state, rtol=1e-2)
    h = jnp.minimum(share / jnp.maximum(pairs.values[0], 1e-3), horizon - t)
    along = lambda k, c: jtu.tree_map(lambda p, g: p - c * g, params, k)
    k1 = problem.gradient(params)
    if order == 1:
        return along(k1, h), t + h, pairs.hvps, state
    k2 = problem.gradient(along(k1, h / 2))
    k3 = problem.gradient(along(k2, h / 2))
    k4 = problem.gradient(along(k3, h))
    slope = jtu.tree_map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
    return along(slope, h), t + h, pairs.hvps, state


def degree(stiffness: float, error: float) -> int:
    """Smallest degree of a Chebyshev expansion of exp(-x) on [0, `stiffness`] with tail ≤ `error`."""
    from scipy.special import ive

    coefficients = 2 * ive(np.arange(4000), stiffness / 2)  # of exp(-x), by its generating function
    tails = np.cumsum(coefficients[::-1])[::-1]
    return int(np.argmax(tails <= error)) - 1
