"""Norms of predictors and matrices that flows are found to minimise."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact


def lp_norm(w: Inexact[Array, "..."], order: float | int) -> Float[Array, ""]:
    """(Σᵢ |wᵢ|ᵖ)^(1/p) over all entries, p = `order` > 0; for p < 1 a quasi-norm.

    Weight decay on a diagonal network of depth k is a penalty of its predictor with p = 2/k:
    min ½ Σⱼ ‖uⱼ‖² over u₁ ⊙ ⋯ ⊙ u_k = w is (k/2) Σᵢ |wᵢ|^{2/k}.

    **Raises:** `ValueError` unless p is positive.
    """
    if not order > 0:
        raise ValueError(f"order must be positive, but {order!r} came; 1 and 2 are the usual norms.")
    size = jnp.abs(w)
    largest = jnp.max(size, initial=0)  # taken out, so that no power overflows or underflows
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sum((size / scale) ** order) ** (1 / order)


def nuclear_norm(matrix: Float[Array, "rows columns"]) -> Float[Array, ""]:
    """Σᵢ σᵢ, the sum of the singular values: min ½(‖A‖² + ‖B‖²) over AB = `matrix`."""
    return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False))


def variation_norm(w: Float[Array, "width d"], v: Float[Array, " width"]) -> Float[Array, ""]:
    """Σⱼ |vⱼ| ‖wⱼ‖ of the two-layer (leaky) ReLU network with neurons `w` and output weights `v`.

    It is the variation norm of the function if no two neurons have the same direction and opposite signs, and
    an upper bound always; for balanced neurons it is ½ (‖w‖² + ‖v‖²).

    **Raises:** `ValueError` unless there is one output weight for each row of `w`.

    ??? cite "Reference"

        L. Chizat and F. Bach. Implicit Bias of Gradient Descent for Wide Two-layer Neural Networks Trained
        with the Logistic Loss. COLT 2020. [arXiv:2002.04486](https://arxiv.org/abs/2002.04486)
    """
    if w.ndim != 2 or v.shape != w.shape[:1]:
        raise ValueError(
            f"w and v must have shapes (width, d) and (width,), but these are {w.shape} and {v.shape}."
        )
    return jnp.sum(jnp.abs(v) * jnp.linalg.norm(w, axis=1))


def effective_rank(matrix: Float[Array, "rows columns"]) -> Float[Array, ""]:
    """exp(−Σᵢ pᵢ log pᵢ), pᵢ = σᵢ / Σⱼ σⱼ: between 1 and the number of singular values; 0 for the matrix 0.

    ??? cite "Reference"

        O. Roy and M. Vetterli. The effective rank: a measure of effective dimensionality. EUSIPCO 2007. Along
        deep matrix factorisations: S. Arora, N. Cohen, W. Hu and Y. Luo, NeurIPS 2019.
        [arXiv:1905.13655](https://arxiv.org/abs/1905.13655)
    """
    values = jnp.linalg.svd(matrix, compute_uv=False)
    total = jnp.sum(values)
    p = values / jnp.where(total == 0, 1, total)
    entropy = -jnp.sum(jnp.where(p == 0, 0, p * jnp.log(jnp.where(p == 0, 1, p))))
    return jnp.where(total == 0, 0, jnp.exp(entropy))
