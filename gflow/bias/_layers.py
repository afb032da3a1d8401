"""Layers of deep linear networks: do they align, and do they become rank one?"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def layer_alignment(matrices: Sequence[Float[Array, "_ _"]]) -> Float[Array, " pairs"]:
    """|⟨v_{j+1}, u_j⟩| for neighbouring layers of the network x ↦ W_k … W_1 x: 1 when they are aligned.

    u_j is the leading left singular vector of W_j and v_{j+1} the leading right singular vector of W_{j+1}.

    **Arguments:** `matrices` are W_1, …, W_k, at least two.

    **Raises:** `ValueError` for fewer than two.

    ??? cite "Reference"

        Z. Ji and M. Telgarsky. Gradient descent aligns the layers of deep linear networks. ICLR 2019.
        [arXiv:1810.02032](https://arxiv.org/abs/1810.02032)
    """
    if len(matrices) < 2:
        raise ValueError(f"matrices must hold at least two layers, but {len(matrices)} came.")
    decompositions = [jnp.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    pairs = zip(decompositions[:-1], decompositions[1:], strict=True)
    cosine = lambda lower, upper: jnp.vdot(upper[2][0], lower[0][:, 0], precision="highest")
    return jnp.stack([jnp.abs(cosine(*pair)) for pair in pairs])


def singular_value_ratio(matrix: Float[Array, "_ _"]) -> Float[Array, ""]:
    """σ₂/σ₁ of a matrix: 0 for rank one."""
    values = jnp.linalg.svd(matrix, compute_uv=False)
    return values[1] / values[0] if len(values) > 1 else jnp.zeros_like(values[0])
