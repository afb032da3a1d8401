"""Classification data of the catalogue: separable, as rows x with labels ±1."""

import diffrax
import numpy as np

import gflow
from gflow.losses import Exponential, Log
from gflow.stop import LossBelow

SEEDS = (0, 1, 2)


def teacher(seed: int, n: int, d: int, gap: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """n standard normal points in d dimensions, at least `gap` from the plane of a linear teacher."""
    random = np.random.default_rng(seed)
    direction = random.normal(size=d)
    direction /= np.linalg.norm(direction)
    x = random.normal(size=(6 * n, d))
    x = x[np.abs(x @ direction) > gap][:n]
    assert len(x) == n
    return x, np.sign(x @ direction)


def real(ones: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of classes that a plane separates, standardised, with a column of ones for the bias if `ones`."""
    pairs = {
        "iris": (gflow.data.iris, 0, 1),
        "wine": (gflow.data.wine, 0, 1),
        "digits": (gflow.data.digits, 3, 8),
    }
    return {name: pair(*load(), a, b, ones=ones) for name, (load, a, b) in pairs.items()}


def pair(x, y, a: int, b: int, ones: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The classes a (−1) and b (+1), standardised; coordinates that never change are 0."""
    x, y = np.asarray(x), np.asarray(y)
    chosen = (y == a) | (y == b)
    x = x[chosen]
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)
    if ones:
        x = np.hstack([x, np.ones((len(x), 1))])
    return x, np.where(y[chosen] == a, -1.0, 1.0)


def direction_distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖a/‖a‖ − b/‖b‖‖."""
    return float(np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b)))


def follow(model, data, level: float, save_at, *, loss=None, solver=None, **options) -> gflow.Trajectory:
    """The gradient flow in log-loss time, dθ/dτ = −∇ log L, until −log L = `level`; `traj.loss` is log L.

    By default of the exponential loss, by Kvaerno5: on the separable side the equation is stiff and smooth.
    """
    options = {"rtol": 1e-6, "atol": 1e-10, "max_steps": 50_000} | options
    return gflow.integrate(
        model,
        data,
        np.inf,
        loss=Log(Exponential() if loss is None else loss),
        solver=diffrax.Kvaerno5() if solver is None else solver,
        save_at=save_at,
        stop=LossBelow(-level),
        **options,
    )


def follow_by_euler(model, data, level: float, save_at, step=1e-3, **options) -> gflow.Trajectory:
    """`follow` for ReLU networks, by Euler steps of fixed length.

    Neurons may slide along kinks, where the vector field jumps: error control takes tiny steps there.
    """
    options = {"controller": diffrax.ConstantStepSize(), "dt0": step, "max_steps": 10**7} | options
    return follow(model, data, level, save_at, solver=diffrax.Euler(), **options)


def follow_relu(model, data, level: float, save_at, **options) -> gflow.Trajectory:
    """`follow` for ReLU networks that slide at first only: by Euler's method until L < 0.3/n, then by RKC3.

    The trajectory is that of the second part, in which no example is misclassified.
    """
    start = follow_by_euler(model, data, np.log(len(data[1]) / 0.3), np.zeros(1))
    return follow(start.model, data, level, save_at, solver=gflow.solvers.RKC3(), **options)


def nearest(traj: gflow.Trajectory, level: float) -> int:
    """The record whose −log L is nearest to `level`, as a ratio."""
    return int(np.argmin(np.abs(np.log(np.maximum(-traj.loss, 1e-300) / level))))


def worst(values) -> float:
    """The largest, NaN if there is one."""
    return float(np.max(np.asarray(list(values), float)))
