"""What the flow of a deep linear network conserves."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def balancedness(matrices: Sequence[Float[Array, "_ _"]]) -> list[Float[Array, "_ _"]]:
    """W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ of neighbouring layers of x ↦ W_k ⋯ W_1 x; gradient flow conserves each.

    For a product written from the left, W_1 ⋯ W_k, pass the factors in reverse. All zero means balanced.

    **Arguments:** `matrices` are W_1, …, W_k, at least two.

    **Raises:** `ValueError` for fewer than two, and if they can't be multiplied in this order.

    ??? cite "Reference"

        S. S. Du, W. Hu and J. D. Lee. Algorithmic Regularization in Learning Deep Homogeneous Models: Layers
        are Automatically Balanced. NeurIPS 2018. [arXiv:1806.00900](https://arxiv.org/abs/1806.00900)
    """
    if len(matrices) < 2:
        raise ValueError(f"matrices must hold at least two layers, but {len(matrices)} came.")
    pairs = list(zip(matrices[:-1], matrices[1:], strict=True))
    if any(upper.shape[1:] != lower.shape[:1] for lower, upper in pairs):
        raise ValueError(
            "matrices must be W_1, …, W_k of a product W_k ⋯ W_1, but their shapes are "
            f"{', '.join(str(w.shape) for w in matrices)}; reverse them for a product written from the left."
        )
    square = lambda a, b: jnp.matmul(a, b, precision="highest")
    return [square(upper.T, upper) - square(lower, lower.T) for lower, upper in pairs]
