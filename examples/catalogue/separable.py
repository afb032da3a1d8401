"""Classification data of the catalogue: separable, as rows x with labels ±1."""

import dataclasses

import diffrax
import numpy as np

import gflow
from gflow.clocks import LogLoss, LogNorm, TwoPhase
from gflow.losses import Exponential
from gflow.stop import Crosses

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


def follow(model, data, level: float, save_at, *, clock=None, **options) -> gflow.Trajectory:
    """The gradient flow of the exponential loss until −log L = `level`.

    By default in two phases, for homogeneous models: plain time until L < 0.3/n, then log-norm time
    s = log ‖θ‖ from there, in which the records are made. log t is carried along.
    """
    options = {"loss": Exponential(), "rtol": 1e-6, "atol": 1e-10} | options
    clock = TwoPhase() if clock is None else clock
    return gflow.integrate(
        model, data, np.inf, clock=clock, save_at=save_at, stop=Crosses("log_loss", -level), **options
    )


def follow_by_euler(model, data, level: float, save_at, step=1e-3, **options) -> gflow.Trajectory:
    """`follow` in log-loss time for ReLU networks, by Euler steps of fixed length.

    Neurons may slide along kinks, where the vector field jumps: error control takes tiny steps there.
    """
    fixed = {"solver": diffrax.Euler(), "controller": diffrax.ConstantStepSize(), "dt0": step}
    return follow(model, data, level, save_at, clock=LogLoss(), max_steps=10**7, **fixed, **options)


def follow_relu(model, data, level: float, save_at, **options) -> gflow.Trajectory:
    """`follow` for ReLU networks that slide at first only: Euler's method takes the first phase.

    The trajectory is that of the second part, from L = 0.3/n on.
    """
    start = follow_by_euler(model, data, np.log(len(data[1]) / 0.3), np.zeros(1))
    flow = follow(start.model, data, level, save_at, clock=LogNorm(), **options)
    return dataclasses.replace(flow, log_t=np.logaddexp(start.log_t[-1], flow.log_t))


def separated(flow: gflow.Trajectory) -> slice:
    """The records from the switch on, where no example is misclassified."""
    return slice(flow.switch, None)


def nearest(flow: gflow.Trajectory, level: float) -> int:
    """The record whose −log L is nearest to `level`, as a ratio."""
    return int(np.argmin(np.abs(np.log(np.maximum(-flow["log_loss"], 1e-300) / level))))


def worst(values) -> float:
    """The largest, NaN if there is one."""
    return float(np.max(np.asarray(list(values), float)))
