"""Classification data of the catalogue: separable, as rows x with labels ±1."""

import numpy as np

import gflow

SEEDS = (0, 1, 2)


def teacher(seed: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """n standard normal points in d dimensions and the signs of a linear teacher, none close to its plane."""
    random = np.random.default_rng(seed)
    direction = random.normal(size=d)
    direction /= np.linalg.norm(direction)
    x = random.normal(size=(6 * n, d))
    x = x[np.abs(x @ direction) > 0.5][:n]
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
