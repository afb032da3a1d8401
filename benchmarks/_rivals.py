"""Rivals of gflow's solvers that are no diffrax solvers, each counting what it spends.

Gradient descent and Runge-Kutta with steps of a fixed share of 1/λ(t), scipy's solvers with dense Jacobians,
and torchdiffeq, if it is installed.
"""

import importlib
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import gflow

torch: Any
torchdiffeq: Any
try:  # of the extra `race`, which most do without, type checkers among them
    torch, torchdiffeq = (importlib.import_module(name) for name in ("torch", "torchdiffeq"))
except ImportError:
    torch = torchdiffeq = None


class Spent(NamedTuple):
    """Where a method came to, and at what price."""

    params: np.ndarray
    gradients: int
    hvps: int
    until: float  # the time reached
    seconds: float


class OutOfTime(Exception):
    """A run takes longer than it may."""


def march(problem: gflow.Problem, horizon: float, share: float, order: int, limit: int, every: int) -> Spent:
    """Steps of `share`/λ(t) up to the horizon, λ followed from `every` so many steps to the next.

    `order` 1 is gradient descent; 4 is the classical Runge-Kutta method.
    """
    began = perf_counter()
    arrays = jnp.asarray(horizon), jnp.asarray(share), jnp.asarray(limit // order)
    params, t, steps, hvps = jax.device_get(_marched(problem, *arrays, order, every))
    flat = np.asarray(ravel_pytree(params)[0])
    until = float(t) if np.all(np.isfinite(flat)) else 0.0
    return Spent(flat, int(steps) * order, int(hvps), until, perf_counter() - began)


@eqx.filter_jit
def _marched(problem, horizon, share, most, order, every):
    def going_on(carry):
        _, t, steps, *_ = carry
        return (t < horizon) & (steps < most)  # a NaN ends it as well

    def step(carry):
        params, t, steps, hvps, track, top = carry
        follow = lambda: _followed(problem, params, track)
        top, track, spent = jax.lax.cond(steps % every == 0, follow, lambda: (top, track, jnp.array(0)))
        h = jnp.minimum(share / jnp.maximum(top, 1e-3), horizon - t)
        along = lambda k, c: jtu.tree_map(lambda p, g: p - c * g, params, k)
        slope = k1 = problem.gradient(params)
        if order == 4:
            k2 = problem.gradient(along(k1, h / 2))
            k3 = problem.gradient(along(k2, h / 2))
            k4 = problem.gradient(along(k3, h))
            slope = jtu.tree_map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
        # the last step ends at the horizon exactly
        t = jnp.where(h < horizon - t, t + h, horizon)
        return along(slope, h), t, steps + 1, hvps + spent, track, top

    zero = jnp.array(0)
    start = gflow.curvature.start_track(problem)
    begin = (problem.params, jnp.zeros_like(horizon), zero, zero, start, jnp.zeros_like(horizon))
    return jax.lax.while_loop(going_on, step, begin)[:4]


def _followed(problem, params, track):
    pairs, track = gflow.curvature.follow(problem, params, track, rtol=1e-2)
    return pairs.values[0], track, jnp.asarray(pairs.hvps)


def by_scipy(
    problem: gflow.Problem,
    horizon: float,
    method: str,
    rtol: float,
    hessian: Callable[[Any], jax.Array],
    most: float,
) -> Spent:
    """A method of `scipy.integrate.solve_ivp` with dense Jacobians, P Hessian-vector products each.

    It ends after `most` seconds.
    """
    flat, unravel = ravel_pytree(problem.params)
    gradient = eqx.filter_jit(lambda y: ravel_pytree(problem.gradient(unravel(y)))[0])
    gradients = jacobians = 0
    reached, began = 0.0, perf_counter()

    def field(t, y):
        nonlocal gradients, reached
        gradients, reached = gradients + 1, t
        if perf_counter() - began > most:
            raise OutOfTime
        return -np.asarray(gradient(jnp.asarray(y)))

    def jacobian(t, y):
        nonlocal jacobians
        jacobians += 1
        return -np.asarray(hessian(jnp.asarray(y)))

    end, options = np.asarray(flat), {"rtol": rtol, "atol": 0.1 * rtol, "jac": jacobian, "t_eval": [horizon]}
    try:
        found = solve_ivp(field, (0, horizon), end, method=method, **options)
        end, reached = (found.y[:, -1], horizon) if found.success else (end, reached)
    except OutOfTime:
        pass
    return Spent(end, gradients, jacobians * flat.size, reached, perf_counter() - began)


def dense_hessian(problem: gflow.Problem) -> Callable[[jax.Array], jax.Array]:
    """The Hessian of the loss in the flat vector of parameters."""
    unravel = ravel_pytree(problem.params)[1]
    return eqx.filter_jit(jax.jacfwd(lambda y: ravel_pytree(problem.gradient(unravel(y)))[0]))


def by_torchdiffeq(problem: gflow.Problem, horizon: float, rtol: float, most: float = np.inf) -> Spent:
    """`torchdiffeq.odeint` by dopri5 on the same loss, written in torch, for at most so many seconds."""
    loss = _torch_loss(problem)
    flat, unravel = ravel_pytree(problem.params)
    start = torch.tensor(np.asarray(flat))
    count, reached, began = 0, 0.0, perf_counter()

    def field(t, y):
        nonlocal count, reached
        count, reached = count + 1, float(t)
        if perf_counter() - began > most:
            raise OutOfTime
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return -torch.autograd.grad(loss(y), y)[0]

    ours = np.asarray(ravel_pytree(problem.gradient(unravel(flat)))[0])
    np.testing.assert_allclose(-field(0.0, start).numpy(), ours, atol=1e-9 * np.abs(ours).max())
    count, began, end = 0, perf_counter(), start
    times = torch.tensor([0.0, horizon], dtype=start.dtype)
    try:
        with torch.no_grad():
            end = torchdiffeq.odeint(field, start, times, rtol=rtol, atol=0.1 * rtol, method="dopri5")[-1]
        reached = horizon
    except OutOfTime:
        pass
    return Spent(end.numpy(), count, 0, reached, perf_counter() - began)


def _torch_loss(problem: gflow.Problem) -> Callable[[Any], Any]:
    """The loss as a function of the flat vector, in which the leaves follow each other as in JAX."""
    leaves = jtu.tree_leaves(problem.params)
    sizes, shapes = [leaf.size for leaf in leaves], [leaf.shape for leaf in leaves]
    model, loss = problem.model(problem.params), problem.loss

    def parts(y):
        return [part.reshape(shape) for part, shape in zip(y.split(sizes), shapes, strict=True)]

    if isinstance(model, dict):
        target = torch.tensor(np.asarray(problem.data))

        def product(y):
            first, second, third = parts(y)[0]
            return 0.5 * ((third @ second @ first - target) ** 2).sum()

        return product
    x, target = (torch.tensor(np.asarray(a)) for a in problem.data)
    network = _torch_network(model)
    if isinstance(loss, gflow.losses.Squared):
        return lambda y: 0.5 * ((network(parts(y), x) - target) ** 2).sum(-1).mean()
    if isinstance(loss, gflow.losses.CrossEntropy):
        return lambda y: torch.nn.functional.cross_entropy(network(parts(y), x), target.long())

    def log_logistic(y):
        z = -target * network(parts(y), x)[:, 0]
        near, far = z.clamp(min=-20), z.clamp(max=-20)  # else the branch not taken makes a NaN
        logs = torch.where(z < -20, far - far.exp() / 2, torch.nn.functional.softplus(near).log())
        return torch.logsumexp(logs, 0) - np.log(len(logs))

    return log_logistic


def _torch_network(model: Any) -> Callable[[list[Any], Any], Any]:
    """The model, of weights and examples."""
    functional = torch.nn.functional
    if isinstance(model, eqx.nn.Linear):
        return lambda w, x: x @ w[0].T
    if isinstance(model, eqx.nn.Sequential):

        def convolutional(w, x):
            x = functional.softplus(functional.conv2d(x, w[0], w[1][:, 0, 0], stride=2, padding=1))
            x = functional.softplus(functional.conv2d(x, w[2], w[3][:, 0, 0], stride=2, padding=1))
            return x.flatten(1) @ w[4].T + w[5]

        return convolutional
    activation = functional.silu if model.activation is jax.nn.silu else torch.tanh

    def perceptron(w, x):
        for k in range(0, len(w) - 2, 2):
            x = activation(x @ w[k].T + w[k + 1])
        return x @ w[-2].T + w[-1]

    return perceptron
