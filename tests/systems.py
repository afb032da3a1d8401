"""Systems with known answers, and the answers, which never come from the code under test.

The models are gradient flows of the literature on implicit bias; references are closed forms, a
damped Newton method on a convex dual, and numpy.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow._stepper import Run


class DeepScalar(eqx.Module):
    """σᵢ = wᵢᴺ, the depth-N toy model of Gissin, Shalev-Shwartz and Daniely (arXiv:1909.12051)."""

    w: jax.Array
    depth: int = eqx.field(static=True)

    def __call__(self, x):
        return self.w**self.depth * x

    @property
    def sigma(self):
        return self.w**self.depth


def deep_scalar_loss(model, target):
    """(1/(2N²)) Σ (wᵢᴺ − σᵢ*)², for which σ' = σ^{2−2/N} (σ* − σ)."""
    return jnp.sum((model.sigma - target) ** 2) / (2 * model.depth**2)


def deep_scalar_time(depth, sigma, start, target):
    """The time at which σ is reached, in closed form for N = 2 and 3, by quadrature above."""
    if depth == 2:
        return np.log(sigma * (target - start) / (start * (target - sigma))) / target
    if depth == 3:
        a = target ** (1 / 3)

        def primitive(w):
            return (3 / a**3) * (
                -1 / w
                + (1 / (3 * a))
                * (
                    -np.log(a - w)
                    + 0.5 * np.log(w**2 + a * w + a**2)
                    - np.sqrt(3) * np.arctan((2 * w + a) / (np.sqrt(3) * a))
                )
            )

        return primitive(sigma ** (1 / 3)) - primitive(start ** (1 / 3))
    from scipy.integrate import quad

    def integrand(u):
        s = np.exp(u)
        return s / (s ** (2 - 2 / depth) * (target - s))

    return quad(integrand, np.log(start), np.log(sigma), epsabs=0, epsrel=1e-12, limit=500)[0]


class Linear(eqx.Module):
    """f(x) = w·x."""

    w: jax.Array

    def __call__(self, x):
        return self.w @ x


def least_squares_path(x, y, start, t):
    """w(t) of dw/dt = −(1/n) Xᵀ(Xw − y), from the eigendecomposition of XXᵀ."""
    n = len(x)
    eigenvalues, u = np.linalg.eigh(x @ x.T / n)
    factors = -np.expm1(-eigenvalues * t) / eigenvalues
    return start + x.T @ (u @ (factors * (u.T @ (y - x @ start)))) / n


class Diagonal(eqx.Module):
    """The predictor w = u² − v² of Woodworth et al. (arXiv:2002.09277)."""

    u: jax.Array
    v: jax.Array

    def __call__(self, x):
        return self.predictor @ x

    @property
    def predictor(self):
        return self.u**2 - self.v**2


def sum_of_squares(model, data):
    """½‖Xw − y‖², summed over examples."""
    x, y = data
    return 0.5 * jnp.sum((jax.vmap(model)(x) - y) ** 2)


def hypentropy_limit(x, y, alpha):
    """argmin Q_α subject to Xw = y: w = 2α² sinh(Xᵀν), ν by damped Newton on the convex dual."""
    scale = 2 * alpha**2
    dual = lambda nu: scale * np.sum(np.cosh(x.T @ nu)) - y @ nu
    nu = np.zeros(len(y))
    for _ in range(200):
        z = x.T @ nu
        residual = scale * (x @ np.sinh(z)) - y
        if np.abs(residual).max() < 1e-13 * np.abs(y).max():
            break
        hessian = scale * (x * np.cosh(z)) @ x.T
        step = np.linalg.solve(hessian, residual)
        damping = min(1.0, 1 / np.abs(x.T @ step).max())  # within which cosh is tame
        while dual(nu - damping * step) > dual(nu) + 1e-12 * abs(dual(nu)) and damping > 1e-12:
            damping /= 2
        nu = nu - damping * step
    w = scale * np.sinh(x.T @ nu)
    assert np.abs(x @ w - y).max() < 1e-10 * np.abs(y).max()
    return w


class Factors(eqx.Module):
    """A product of matrices W_N … W_1, applied to x."""

    matrices: list

    def __call__(self, x):
        for matrix in self.matrices:
            x = matrix @ x
        return x


def balancedness(model):
    """W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ, conserved by gradient flow (Du, Hu and Lee, arXiv:1806.00900)."""
    return jnp.stack(
        [
            upper.T @ upper - lower @ lower.T
            for lower, upper in zip(model.matrices[:-1], model.matrices[1:], strict=True)
        ]
    )


def tanh_network(sizes=(5, 12, 12, 3), examples=30, seed=0, dtype=np.float64):
    """A small network and data for it."""
    random = np.random.default_rng(seed)
    model = eqx.nn.MLP(
        sizes[0], sizes[-1], sizes[1], len(sizes) - 2, activation=jnp.tanh, key=jax.random.key(seed)
    )
    model = jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, model)
    x = random.normal(size=(examples, sizes[0])).astype(dtype)
    y = np.sin(random.normal(size=(examples, sizes[-1])) + x[:, : sizes[-1]]).astype(dtype)
    return model, (jnp.asarray(x), jnp.asarray(y))


def problem_of(network):
    """The squared-error problem of (model, data)."""
    return gflow.Problem(*network, gflow.losses.Squared())


def dense_hessian(problem, params=None):
    """The Hessian as a matrix, from jax.hessian of the raveled loss, not from problem.hvp."""
    return np.asarray(_dense_hessian(problem, problem.params if params is None else params))


@eqx.filter_jit
def _dense_hessian(problem, params):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return jax.hessian(lambda p: problem.value(unravel(p)))(flat)


def counting(loss):
    """The same loss, and a list with one number: how many gradients of it have been evaluated."""
    counted = [0]

    @jax.custom_vjp
    def value_of(value):
        return value

    def backward(_, cotangent):
        jax.debug.callback(lambda: counted.__setitem__(0, counted[0] + 1))
        return (cotangent,)

    value_of.defvjp(lambda value: (value, None), backward)
    return lambda model, data: value_of(loss(model, data)), counted


def ctrl_c_at_record(patch, number):
    """As if the user interrupted each run, once, when its record of that number is due."""
    record = Run._record

    def interrupting(self, position, t):
        if len(self.t) == number - 1 and not hasattr(self, "was_interrupted"):
            self.was_interrupted = True
            raise KeyboardInterrupt
        return record(self, position, t)

    patch.setattr(Run, "_record", interrupting)
