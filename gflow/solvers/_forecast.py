"""What a step of EXPRB32 would cost at a point of a run, found out without compiling that solver.

A Lanczos process of a few vectors on the host, one call of the vector field each. Its small matrix tells for
every step size how many vectors the step needs, and one more call how large the error of the step is.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ._exprb import EXPRB32

# Steps that are looked at, in multiples of the step of the solver in use.
_MULTIPLES = (1.0, 2.0, 4.0, 8.0, 16.0)
_SAFETY = 0.85  # as of the step size controller


class Forecast(NamedTuple):
    """A step of EXPRB32, the gradients it would take, and those spent on finding out."""

    step: float
    cost: int
    spent: int


def forecast(
    field: Callable[[np.ndarray], np.ndarray],
    y: np.ndarray,
    f: np.ndarray,
    solver: EXPRB32,
    step: float,
    *,
    rate: float,
    most: int,
) -> Forecast | int:
    """The best step of `solver` from `y`, where the field is `f`.

    `step` is the present step of another solver. Where no step is found that takes fewer than `rate` gradients
    per unit of time, or more than `most` vectors would be needed to tell, only the gradients spent come back.
    """
    length = np.linalg.norm(f)
    if length == 0 or not np.isfinite(length):
        return 0
    eps = float(np.finfo(f.dtype).eps)
    displacement = eps**0.4 * max(float(np.linalg.norm(y)), 1e-3)
    weights = 1 / (float(solver.atol) + float(solver.rtol) * np.abs(y)) / np.sqrt(y.size)
    steps = [c * step for c in _MULTIPLES]
    basis, small = (f / length)[None], np.zeros((0, 0))
    sizes: dict[float, int] = {}
    while len(small) < most:
        m = len(small)
        # the largest step that is still to be settled would have to be worth one vector more
        open_steps = [h for h in steps if h not in sizes and (m + 3) / h < rate]
        if not open_steps:
            break
        w = (field(y + displacement * basis[m]) - f) / displacement
        products = basis @ w
        w = w - products @ basis
        w = w - (basis @ w) @ basis
        beta = float(np.linalg.norm(w))
        if not np.isfinite(beta):
            return m + 1
        small = np.pad(small, (0, 1))
        small[m, :] = small[:, m] = products  # tridiagonal up to rounding
        following = w / beta if beta > 0 else w
        lacking = length * beta * float(np.linalg.norm(weights * following))
        for h in open_steps:
            if h**2 * lacking * abs(_phi(2, h * small)[m, 0]) <= solver.accuracy:
                sizes[h] = m + 1
        basis = np.vstack([basis, following])
    spent = len(small)
    worth = {h: (m + 2) / h for h, m in sizes.items() if (m + 2) / h < rate}
    if not worth:
        return spent
    h = max(worth)
    m = sizes[h]
    space, t = basis[:m], small[:m, :m]
    inside = h * length * _phi(1, h * t)[:, 0]
    beta = small[m, m - 1] if m < len(small) else float(np.linalg.norm(w))
    image = (t @ inside) @ space + beta * inside[-1] * basis[m]
    remainder = field(y + inside @ space) - f - image
    d = space @ remainder
    rest = 2 * h * ((_phi(3, h * t) @ d) @ space + (remainder - d @ space) / 6)
    error = float(np.linalg.norm(weights * rest))
    if not np.isfinite(error):
        return spent + 1
    taken = h * min(1.0, _SAFETY * max(error, 1e-10) ** (-1 / 3))
    if error > 1:  # the vectors that the shorter step needs
        m = min([m, *(sizes[other] for other in sizes if other >= taken)])
    return Forecast(taken, m + 2, spent + 1) if (m + 2) / taken < rate else spent + 1


def _phi(k: int, a: np.ndarray) -> np.ndarray:
    """phi_k of a symmetric matrix."""
    values, vectors = np.linalg.eigh(a)
    near = np.abs(values) < 1.0
    z = np.where(near, 1.0, values)
    far = np.exp(np.minimum(z, 100.0))
    term, series, factorial = np.ones_like(values), np.zeros_like(values), 1.0
    for j in range(1, k + 1):
        far = (far - 1 / factorial) / z
        factorial *= j
    term = term / factorial
    for j in range(1, 20):
        series, term = series + term, term * np.where(near, values, 0) / (k + j)
    return (vectors * np.where(near, series, far)) @ vectors.T
