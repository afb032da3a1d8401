"""Statistics of a descent at the edge of stability."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float


class Edge(eqx.Module):
    """A descent seen from its threshold.

    **Attributes:**

    - `crossing`: first recorded step with sharpness > threshold, `None` if there is none.
    - `onset`: first step k from the crossing on with L(θ_k) > L(θ_{k−1}), `None` if there is none.
    - `mean`, `spread`: mean and standard deviation of sharpness/threshold over the records from the onset
        on, NaN without an onset.
    - `nonmonotone`: share of the steps from the onset on at which the loss rises, NaN without an onset.
    - `sharpening`: rate of progressive sharpening, the least-squares slope of ln(sharpness) per step from
        its least value before the crossing to the crossing (or the end, if there is none).
    """

    crossing: int | None
    onset: int | None
    mean: float
    spread: float
    nonmonotone: float
    sharpening: float


def edge(
    step: Any,
    sharpness: Float[np.ndarray, " records"],
    step_loss: Float[np.ndarray, " steps"] | None,
    threshold: Any,
) -> Edge:
    """Statistics from records of the sharpness at the steps `step` and the loss at every step.

    `threshold` is one number or one per record. Without `step_loss` there is no onset.
    """
    step = np.asarray(step)
    ratio = sharpness / threshold
    above = np.flatnonzero(sharpness > threshold)
    crossing = int(step[above[0]]) if len(above) else None
    onset, mean, spread, share = None, np.nan, np.nan, np.nan
    if crossing is not None and step_loss is not None:
        rises = np.diff(step_loss) > 0
        later = np.flatnonzero(rises[max(crossing, 1) - 1 :])
        if len(later):
            onset = int(later[0]) + max(crossing, 1)
            share = float(np.mean(rises[onset - 1 :]))
            if np.any(step >= onset):
                window = ratio[step >= onset]
                mean, spread = float(np.mean(window)), float(np.std(window))
    end = len(step) if crossing is None else int(above[0]) + 1
    positive = np.flatnonzero(sharpness[:end] > 0)  # it has a logarithm
    slope = np.nan
    if len(positive):
        rising = positive[int(np.argmin(sharpness[positive])) :]
        if len(rising) > 1:
            slope = float(np.polyfit(step[rising], np.log(sharpness[rising]), 1)[0])
    return Edge(crossing, onset, mean, spread, share, slope)
