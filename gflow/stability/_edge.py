"""Statistics of a descent at the edge of stability."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int, Shaped

from gflow._numbers import Real, is_number
from gflow._trajectory import Trajectory
from gflow.stability._optimizers import AbstractOptimizer, GradientDescent


class Edge(eqx.Module):
    """A descent seen from its threshold.

    With S_k the sharpness at θ_k that the threshold is for (preconditioned for RMSProp and Adam) and T_k the
    threshold:

    **Attributes:**

    - `crossing`: first recorded step with S_k > T_k, `None` if there is none.
    - `onset`: first step k from the crossing on with L(θ_k) > L(θ_{k−1}), `None` if there is none.
    - `mean`, `spread`: mean and standard deviation of S_k/T_k over the records from the onset on.
    - `nonmonotone`: share of the steps from the onset on at which the loss rises.
    - `sharpening`: rate of progressive sharpening, the least-squares slope of ln S_k per step from its least
        value before the crossing to the crossing (or the end, if there is none).

    These need the records of [`gflow.observe.Oscillation`][], also from the onset on:

    - `midpoint_mean`, `midpoint_spread`: as `mean` and `spread`, of the sharpness midway between iterates.
    - `midpoint_loss`: mean of L((θ_k + θ_{k+1})/2)/L(θ_k); what is missing to 1 is due to the oscillation.
    - `amplitude`: root mean square of the oscillation along the top eigenvector.
    - `alternation`: share of pairs of consecutive steps, both recorded, between which the oscillation
        changes sign: 1 for iterates that jump to and fro, 0 for smooth motion.

    What has no records, or no onset, is NaN.

    ??? cite "Reference"

        J. Cohen, S. Kaur, Y. Li, J. Z. Kolter and A. Talwalkar. Gradient Descent on Neural Networks Typically
        Occurs at the Edge of Stability. ICLR 2021. [arXiv:2103.00065](https://arxiv.org/abs/2103.00065)
    """

    crossing: int | None
    onset: int | None
    mean: float
    spread: float
    nonmonotone: float
    sharpening: float
    midpoint_mean: float
    midpoint_spread: float
    midpoint_loss: float
    amplitude: float
    alternation: float


def edge(path: Trajectory, optimizer: Real | AbstractOptimizer) -> Edge:
    """Statistics of a descent at the edge of stability.

    **Arguments:**

    - `path`: what [`gflow.descend`][] returned, with `observe=[gflow.observe.Sharpness()]`, or for RMSProp
        and Adam `gflow.observe.PreconditionedSharpness()`; and with `gflow.observe.Oscillation()` for the
        statistics that need it.
    - `optimizer`: the one that made it: the learning rate η of plain gradient descent, or one of
        [`gflow.stability`][].

    **Returns:** an [`gflow.stability.Edge`][].

    **Raises:** `ValueError` if `path` is a flow, an ensemble or a descent on mini-batches, or `optimizer` has
    no threshold; `KeyError` if the sharpness was not recorded.
    """
    optimizer = as_optimizer(optimizer)
    if path.step is None or path.step_loss is None or path.statuses is not None:
        what = "a flow" if path.statuses is None else "an ensemble"
        raise ValueError(f"path must be the trajectory of one descent, but is that of {what}.")
    # that of a record and that of its step are the same number, or nearly, unless batches differ
    made = path.step < len(path.step_loss)
    apart = np.abs(path.step_loss[path.step[made]] - path.loss[made])
    if np.any(apart > 1e-2 * np.abs(path.loss[made])):
        raise ValueError(
            "path must be a descent on all data, but its step_loss is that of mini-batches, which rises and "
            "falls by chance; leave minibatch out, or record the loss and judge it yourself."
        )
    sharpness, threshold = path[optimizer.quantity], optimizer.threshold(path.step)
    return statistics(path.step, path.records, path.step_loss, sharpness, threshold)


def as_optimizer(optimizer: Any) -> AbstractOptimizer:
    """A learning rate as plain gradient descent; `ValueError` for what has no threshold."""
    if is_number(optimizer):
        return GradientDescent(optimizer)
    if not isinstance(optimizer, AbstractOptimizer):
        raise ValueError(
            "optimizer must be a learning rate or one of gflow.stability, whose threshold is known, but is a "
            f"{type(optimizer).__name__}; wrap it as gflow.stability.Custom(optimizer, limit)."
        )
    return optimizer


def statistics(
    step: Int[np.ndarray, " records"],
    records: Mapping[str, Shaped[np.ndarray, "records ..."]],
    step_loss: Float[np.ndarray, " steps"],
    sharpness: Float[np.ndarray, "records *k"],
    threshold: Any,
) -> Edge:
    """Those of the records made at `step`, and of the loss at every step.

    `threshold`, that of `sharpness`, is one number or one per record.
    """
    sharpness = largest(sharpness)
    threshold = np.broadcast_to(np.asarray(threshold, np.float64), sharpness.shape)
    above = np.flatnonzero(sharpness > threshold)
    crossing = int(step[above[0]]) if len(above) else None
    onset, share = None, np.nan
    window = np.zeros(len(step), bool)
    if crossing is not None:
        rises = np.diff(step_loss) > 0  # rises[k − 1] is that of step k
        later = np.flatnonzero(rises[max(crossing, 1) - 1 :])
        if len(later):
            onset = int(later[0]) + max(crossing, 1)
            share = float(np.mean(rises[onset - 1 :]))
            window = step >= onset
    mean, spread = _mean_and_spread((sharpness / threshold)[window])
    missing = np.full(len(step), np.nan)
    oscillation = records.get("oscillation", missing)[window]
    midpoint_loss = records.get("midpoint_loss", missing)[window] / records["loss"][window]
    midpoint = (records.get("midpoint_sharpness", missing) / threshold)[window]
    midpoint_mean, midpoint_spread = _mean_and_spread(midpoint)
    return Edge(
        crossing=crossing,
        onset=onset,
        mean=mean,
        spread=spread,
        nonmonotone=share,
        sharpening=_sharpening(step, sharpness, len(step) if crossing is None else int(above[0]) + 1),
        midpoint_mean=midpoint_mean,
        midpoint_spread=midpoint_spread,
        midpoint_loss=_mean_and_spread(midpoint_loss)[0],
        amplitude=float(np.sqrt(_mean_and_spread(oscillation**2)[0])),
        alternation=_alternation(step[window], oscillation),
    )


def largest(sharpness: Float[np.ndarray, "records *k"]) -> Float[np.ndarray, " records"]:
    """The largest eigenvalue of each record, of which there may be several."""
    return sharpness if sharpness.ndim == 1 else sharpness[:, 0]


def _mean_and_spread(values: np.ndarray) -> tuple[float, float]:
    return (float(np.mean(values)), float(np.std(values))) if len(values) else (np.nan, np.nan)


def _sharpening(step: np.ndarray, sharpness: np.ndarray, end: int) -> float:
    positive = np.flatnonzero(sharpness[:end] > 0)  # it has a logarithm
    if len(positive):
        rising = positive[int(np.argmin(sharpness[positive])) :]
        if len(rising) > 1:
            return float(np.polyfit(step[rising], np.log(sharpness[rising]), 1)[0])
    return np.nan


def _alternation(step: np.ndarray, oscillation: np.ndarray) -> float:
    products = (oscillation[1:] * oscillation[:-1])[np.diff(step) == 1]
    if not len(products) or np.any(np.isnan(products)):
        return np.nan
    return float(np.mean(products < 0))
