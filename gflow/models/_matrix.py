"""Models whose parameter is a matrix: factorisations for sensing and completion, and quadratic networks."""

from functools import reduce

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gflow._numbers import count
from gflow.models._checks import scale_of

_Measurement = Float[Array, "n m"] | Int[Array, " 2"]


class Factorisation(eqx.Module):
    """Measurements ⟨A, W⟩ of the product W = W₁ ⋯ W_N.

    One example is a matrix A (sensing), or two integers (i, j), which give W_{ij} (completion), NaN if W has
    no such entry.

    **Raises:** `ValueError` unless sizes and depths are positive integers and scales positive and finite.

    ??? cite "Reference"

        S. Arora, N. Cohen, W. Hu and Y. Luo. Implicit Regularization in Deep Matrix Factorization.
        NeurIPS 2019. [arXiv:1905.13655](https://arxiv.org/abs/1905.13655)
    """

    factors: list[Float[Array, "_ _"]]

    @classmethod
    def normal(cls, size: int, depth: int, std: float, *, key: Key[Array, ""]) -> "Factorisation":
        """Square factors with independent entries N(0, std²)."""
        std, shape = scale_of("std", std), (count("size", size),) * 2
        return cls([std * jax.random.normal(k, shape) for k in jax.random.split(key, count("depth", depth))])

    @classmethod
    def identity(cls, size: int, depth: int, scale: float) -> "Factorisation":
        """Square factors, each `scale` times the identity: W = scaleᴺ I."""
        return cls([scale_of("scale", scale) * jnp.eye(count("size", size))] * count("depth", depth))

    def __call__(self, x: _Measurement) -> Float[Array, ""]:
        """⟨A, W⟩ or W_{ij}."""
        return _measure(self.effective(), x)

    def effective(self) -> Float[Array, "n m"]:
        """W = W₁ ⋯ W_N."""
        return reduce(jnp.matmul, self.factors)


class SymmetricFactorisation(eqx.Module):
    """Measurements ⟨A, UUᵀ⟩, or entries of UUᵀ, as in [`gflow.models.Factorisation`][].

    **Raises:** `ValueError` unless sizes and depths are positive integers and scales positive and finite.

    ??? cite "Reference"

        S. Gunasekar et al. Implicit Regularization in Matrix Factorization. NeurIPS 2017.
        [arXiv:1705.09280](https://arxiv.org/abs/1705.09280)
    """

    u: Float[Array, "n r"]

    @classmethod
    def normal(cls, size: int, std: float, *, key: Key[Array, ""]) -> "SymmetricFactorisation":
        """A square U with independent entries N(0, std²)."""
        return cls(scale_of("std", std) * jax.random.normal(key, (count("size", size),) * 2))

    @classmethod
    def identity(cls, size: int, scale: float) -> "SymmetricFactorisation":
        """U = scale · I."""
        return cls(scale_of("scale", scale) * jnp.eye(count("size", size)))

    def __call__(self, x: _Measurement) -> Float[Array, ""]:
        """⟨A, UUᵀ⟩ or (UUᵀ)_{ij}."""
        return _measure(self.effective(), x)

    def effective(self) -> Float[Array, "n n"]:
        """UUᵀ."""
        return self.u @ self.u.T


class Quadratic(eqx.Module):
    """f(x) = ‖Wx‖² + b, or without b if it is `None`: a network with one layer of squares.

    **Raises:** `ValueError` unless sizes and depths are positive integers and scales positive and finite.

    ??? cite "Reference"

        D. Gissin, S. Shalev-Shwartz and A. Daniely. The Implicit Bias of Depth: How Incremental Learning
        Drives Generalization. ICLR 2020. [arXiv:1909.12051](https://arxiv.org/abs/1909.12051)
    """

    w: Float[Array, "width d"]
    b: Float[Array, ""] | None = None

    @classmethod
    def orthogonal(
        cls, size: int, scale: float, *, key: Key[Array, ""], bias: float | None = None
    ) -> "Quadratic":
        """W = scale · Q with Q a random orthogonal matrix, so that WᵀW = scale² I."""
        q, _ = jnp.linalg.qr(jax.random.normal(key, (count("size", size),) * 2))
        return cls(scale_of("scale", scale) * q, None if bias is None else jnp.asarray(bias, float))

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """‖Wx‖² + b."""
        square = jnp.sum((self.w @ x) ** 2)
        return square if self.b is None else square + self.b

    def effective(self) -> Float[Array, "d d"]:
        """S = WᵀW, with f(x) = xᵀSx + b."""
        return self.w.T @ self.w


def _measure(matrix: Float[Array, "n m"], x: _Measurement) -> Float[Array, ""]:
    is_entry = jnp.issubdtype(x.dtype, jnp.integer)
    if x.shape != ((2,) if is_entry else matrix.shape):
        raise ValueError(
            f"x must hold matrices of floats of shape {matrix.shape}, or pairs of integers (i, j), but one "
            f"example has dtype {x.dtype} and shape {x.shape}."
        )
    if is_entry:
        # JAX would take another entry instead of one that is not there; NaN ends a run with a reason
        i, j = jnp.where(x < 0, max(matrix.shape), x)
        return matrix.at[i, j].get(mode="fill", fill_value=jnp.nan)
    # a product of vectors, which becomes one of matrices for many examples
    return jnp.vdot(x, matrix, precision=jax.lax.Precision.HIGHEST)
