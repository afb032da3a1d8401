"""Orthogonal matching pursuit, which flows from tiny initialisations are compared with."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int


def orthogonal_matching_pursuit(
    x: Float[Array, "n d"] | Float[np.ndarray, "n d"],
    y: Float[Array, " n"] | Float[np.ndarray, " n"],
    size: int,
) -> Int[np.ndarray, " size"]:
    """The first `size` coordinates that orthogonal matching pursuit selects, in their order.

    At each step it takes the column of x of largest |⟨xⱼ, residual⟩| / ‖xⱼ‖, and then fits y by least squares
    on all columns taken so far. It ends early if nothing is left to fit.

    **Raises:** `ValueError` for more coordinates than there are examples or features, or none; for shapes
    that don't fit, and for numbers that aren't finite.

    ??? cite "Reference"

        Y. C. Pati, R. Rezaiifar and P. S. Krishnaprasad. Orthogonal matching pursuit: recursive function
        approximation with applications to wavelet decomposition. Asilomar 1993.
    """
    x, y = np.asarray(x) * 1.0, np.asarray(y) * 1.0
    if x.ndim != 2 or y.shape != x.shape[:1] or not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        raise ValueError(
            "x and y must be finite and have shapes (n, d) and (n,), but these are "
            f"{x.shape} and {y.shape}, or hold NaN or infinity."
        )
    if not 1 <= size <= min(x.shape):
        raise ValueError(
            f"size must be from 1 to {min(x.shape)}, the lesser of examples and features, but {size} came."
        )
    lengths = np.linalg.norm(x, axis=0)
    columns = x / np.where(lengths > 0, lengths, 1)  # a column of zeros explains nothing
    tiny = np.finfo(x.dtype).eps * x.shape[0] * np.linalg.norm(y)
    selected: list[int] = []
    residual = y
    while len(selected) < size and np.linalg.norm(residual) > tiny:
        correlation = np.abs(columns.T @ residual)
        correlation[selected] = -1
        selected.append(int(np.argmax(correlation)))
        fit = np.linalg.lstsq(columns[:, selected], y, rcond=None)[0]
        residual = y - columns[:, selected] @ fit
    return np.asarray(selected, dtype=int)


def support_agreement(first: Any, second: Any) -> float:
    """|A ∩ B| / min(|A|, |B|) of two sets of indices: 1 if one of them contains the other.

    A boolean mask stands for the indices where it is true.

    **Raises:** `ValueError` if one is empty, since any agreement would be vacuous.
    """
    a, b = (_indices(np.ravel(indices)) for indices in (first, second))
    if not a or not b:
        raise ValueError("both sets of indices must hold at least one, but one of them is empty.")
    return len(a & b) / min(len(a), len(b))


def _indices(given: np.ndarray) -> set[int]:
    return {int(i) for i in (np.flatnonzero(given) if given.dtype == bool else given)}
