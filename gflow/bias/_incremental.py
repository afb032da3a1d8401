"""Incremental learning: are the values of a model learned one after the other?"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


def passage_times(
    t: Float[np.ndarray, " records"],
    values: Float[np.ndarray, "records k"],
    levels: Float[np.ndarray, " k"] | float | int,
) -> Float[np.ndarray, " k"]:
    """The first time at which each column of `values` is at or above its level; ∞ if it never is.

    Between two records the value is interpolated linearly. Singular values should be sorted at each record,
    so that two that cross don't swap their columns.

    **Raises:** `ValueError` for shapes that don't fit, no record at all, and NaN.
    """
    t, values = _records(t, values)
    levels = np.broadcast_to(levels, values.shape[1:])
    times = np.full(levels.shape, np.inf)
    for k, level in enumerate(levels):
        reached = np.flatnonzero(values[:, k] >= level)
        if not len(reached):
            continue
        i = reached[0]
        times[k] = t[i]
        if i > 0:
            below, above = values[i - 1, k], values[i, k]
            times[k] -= (t[i] - t[i - 1]) * (above - level) / (above - below)
    return times


def half_times(
    t: Float[np.ndarray, " records"],
    values: Float[np.ndarray, "records k"],
    targets: Float[np.ndarray, " k"] | None = None,
) -> Float[np.ndarray, " k"]:
    """When each column of `values` has reached half of its target, by default half of its last record."""
    t, values = _records(t, values)
    return passage_times(t, values, (values[-1] if targets is None else np.asarray(targets)) / 2)


def is_incremental(
    values: Float[np.ndarray, "records k"],
    targets: Float[np.ndarray, " targets"],
    s: float = 0.1,
    f: float = 0.9,
) -> Bool[np.ndarray, " pairs"]:
    """Whether values σ are learned one by one: for each i, that at some record σᵢ ≥ f σᵢ* and σᵢ₊₁ ≤ s σᵢ₊₁*.

    **Arguments:**

    - `values`: the values along a trajectory, one row a record. What happens between two records is not seen.
    - `targets`: σ*, one for each column of `values`, positive and strictly decreasing.
    - `s`, `f`: what still counts as not begun, 0 < s < 1/4, and already as finished, 3/4 < f < 1.

    **Raises:** `ValueError` if `targets`, `s` or `f` are out of range, or their shapes don't fit.

    ??? cite "Reference"

        D. Gissin, S. Shalev-Shwartz and A. Daniely. The Implicit Bias of Depth: How Incremental Learning
        Drives Generalization. ICLR 2020. [arXiv:1909.12051](https://arxiv.org/abs/1909.12051)
    """
    _check_fractions(s, f)
    targets = np.asarray(targets)
    if not (np.all(targets > 0) and np.all(np.diff(targets) < 0)):
        raise ValueError(
            f"targets must be positive and decrease strictly, but {targets} came; sort the values and "
            "leave out zeros and repetitions, for which one after the other has no meaning."
        )
    values = np.asarray(values)
    if values.ndim != 2 or targets.shape != values.shape[1:]:
        raise ValueError(
            "values and targets must have shapes (records, k) and (k,), but these are "
            f"{values.shape} and {targets.shape}; give one target for each column."
        )
    finished, idle = values >= f * targets, values <= s * targets
    return np.any(finished[:, :-1] & idle[:, 1:], axis=0)


class IncrementalThreshold(NamedTuple):
    """The largest initial value for which learning is incremental, in units of the smaller target.

    Natural logarithms, because at depth 2 the value itself may underflow: of the threshold, and of bounds
    between which it is proved to lie. −∞ means never.
    """

    log_value: float
    log_lower: float
    log_upper: float

    @property
    def value(self) -> float:
        """σ_th/σⱼ*, perhaps 0 by underflow."""
        return math.exp(self.log_value)


def incremental_threshold(
    ratio: float | int, depth: float | int, s: float = 0.1, f: float = 0.9
) -> IncrementalThreshold:
    """The threshold of (s, f)-incremental learning of two values of the toy model, by quadrature.

    Two values of depth N with the targets σᵢ* = r σⱼ* begin at the same σ₀ < σⱼ* and follow
    σ' = σ^{2 − 2/N} (σ* − σ). Learning is incremental if at some time σⱼ ≤ s σⱼ* and σᵢ ≥ f σᵢ*. That is so
    exactly for σ₀ up to a threshold x_th σⱼ*, which solves, with p = 1 − 2/N,

    (r−1) ∫ₓˢ du / [u^{1+p} (1−u)(r−u)] = B,  B = ∫ₛ^{rf} du / [u^{1+p} (r−u)].

    Replacing 1/[(1−u)(r−u)] by its least and largest value on [0, s] gives the bounds. As r → 1 the threshold
    falls like (r−1)^{N/(N−2)} for N > 2 but like exp(−c/(r−1)) for N = 2; for N = 1 learning is never
    incremental.

    **Arguments:**

    - `ratio`: r > 1.
    - `depth`: N, which is 1 or at least 2; `math.inf` is allowed.
    - `s`, `f`: 0 < s < 1/4 and 3/4 < f < 1.

    **Raises:** `ValueError` for parameters out of these ranges.

    ??? cite "Reference"

        D. Gissin, S. Shalev-Shwartz and A. Daniely. The Implicit Bias of Depth: How Incremental Learning
        Drives Generalization. ICLR 2020. [arXiv:1909.12051](https://arxiv.org/abs/1909.12051)
    """
    _check_fractions(s, f)
    if not 1 < ratio < math.inf:
        raise ValueError(f"ratio must be finite and greater than 1, but {ratio!r} came.")
    if not (depth == 1 or depth >= 2):
        raise ValueError(f"depth must be 1 or at least 2, but {depth!r} came.")
    if depth == 1:
        return IncrementalThreshold(-math.inf, -math.inf, -math.inf)
    r, p = ratio, 1 - 2 / depth
    # u = r/(1 + e^{−y}) turns du/[u (r−u)] into dy/r, and u = 1/(1 + e^{−y}) turns du/[u (1−u)] into dy;
    # log u keeps what underflows at depth 2
    log_sigmoid = lambda y: -np.logaddexp(0, -y)
    needed = r ** (-p - 1) * _integral(lambda y: np.exp(-p * log_sigmoid(y)), _logit(s / r), _logit(f))
    far = -40.0  # from where on down e^y is rounding, so that the integrand is (1 − 1/r) e^{−py}

    def available(log_x: float) -> float:
        start = log_x - math.log1p(-math.exp(log_x))
        near = _integral(
            lambda y: (r - 1) * np.exp(-p * log_sigmoid(y)) / (r - np.exp(log_sigmoid(y))),
            max(start, far),
            _logit(s),
        )
        span = max(far - start, 0.0)
        length = span if p == 0 else math.exp(-p * far) * math.expm1(p * span) / p
        return near + (1 - 1 / r) * length

    def bound(factor: float) -> float:
        # of (r−1) factor ∫ₓˢ u^{−1−p} du = B, solved for ln x
        time = needed / ((r - 1) * factor)
        return math.log(s) - (time if p == 0 else math.log1p(p * s**p * time) / p)

    lower, upper = bound(1 / r), bound(1 / ((1 - s) * (r - s)))
    low, high = lower, upper
    while low < (middle := (low + high) / 2) < high:  # `available` falls as x grows
        low, high = (middle, high) if available(middle) > needed else (low, middle)
    return IncrementalThreshold(middle, lower, upper)


def _records(t: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, refused unless they fit together and hold numbers."""
    t, values = np.asarray(t), np.asarray(values)
    if values.ndim != 2 or t.shape != values.shape[:1] or not len(t):
        raise ValueError(
            "t and values must have shapes (records,) and (records, k), with at least one record, but these "
            f"are {t.shape} and {values.shape}."
        )
    if np.any(np.isnan(values)):
        raise ValueError("values must be numbers, but some are NaN; leave out the records after a failure.")
    return t, values


def _check_fractions(s: float, f: float) -> None:
    if not 0 < s < 0.25:
        raise ValueError(f"s must lie between 0 and 1/4, but {s!r} came.")
    if not 0.75 < f < 1:
        raise ValueError(f"f must lie between 3/4 and 1, but {f!r} came.")


def _logit(u: float) -> float:
    return math.log(u) - math.log1p(-u)


def _integral(integrand, start: float, end: float) -> float:
    """Gauss-Legendre quadrature on panels of length 1 or less; the integrands have their poles at ±iπ."""
    edges = np.linspace(start, end, max(math.ceil(end - start), 1) + 1)
    half = np.diff(edges)[:, None] / 2
    nodes = (edges[:-1, None] + edges[1:, None]) / 2 + half * _NODES
    return float(np.sum(half * _WEIGHTS * integrand(nodes)))
