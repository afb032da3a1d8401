"""Deep linear networks: fully connected, and convolutional."""

from collections.abc import Sequence
from functools import reduce

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gflow._numbers import count
from gflow.models._checks import scale_of


class DeepLinear(eqx.Module):
    """f(x) = W_k ⋯ W₁ x, a vector; a number if W_k has one row.

    **Arguments:** `matrices` are W₁, …, W_k, each of shape (outputs, inputs).

    **Raises:** `ValueError` unless sizes and depths are positive integers and scales positive and finite.

    ??? cite "Reference"

        Z. Ji and M. Telgarsky. Gradient descent aligns the layers of deep linear networks. ICLR 2019.
        [arXiv:1810.02032](https://arxiv.org/abs/1810.02032)
    """

    matrices: list[Float[Array, "_ _"]]

    @classmethod
    def normal(cls, sizes: Sequence[int], std: float, *, key: Key[Array, ""]) -> "DeepLinear":
        """Independent entries N(0, std²); `sizes` are those of the input, the hidden layers, the output."""
        if len(sizes) < 2:
            raise ValueError(f"sizes must hold those of input and output at least, but {tuple(sizes)} came.")
        for size in sizes:
            count("sizes", size)
        std, keys = scale_of("std", std), jax.random.split(key, len(sizes) - 1)
        shapes = zip(sizes[1:], sizes[:-1], strict=True)
        return cls([std * jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)])

    @classmethod
    def identity(cls, size: int, depth: int, scale: float) -> "DeepLinear":
        """`depth` square layers, each `scale` times the identity."""
        return cls([scale_of("scale", scale) * jnp.eye(count("size", size))] * count("depth", depth))

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, "*outputs"]:
        """W_k ⋯ W₁ x."""
        out = reduce(lambda h, w: w @ h, self.matrices, x)
        return out[0] if out.shape == (1,) else out

    def effective(self) -> Float[Array, "outputs inputs"]:
        """The matrix W_k ⋯ W₁."""
        return reduce(lambda product, w: w @ product, self.matrices)


class Convolutional(eqx.Module):
    """f(x) = ⟨u_L, u_{L−1} ⋆ ⋯ ⋆ u₁ ⋆ x⟩, filters of full width, (u ⋆ h)ₖ = Σⱼ uⱼ h_{(k+j) mod d}.

    Its effective predictor has the discrete Fourier transform β̂ = û₁ ⊙ ⋯ ⊙ û_L.

    **Arguments:** `filters` are u₁, …, u_L, one a row.

    **Raises:** `ValueError` unless sizes and depths are positive integers and scales positive and finite.

    ??? cite "Reference"

        S. Gunasekar, J. Lee, D. Soudry and N. Srebro. Implicit Bias of Gradient Descent on Linear
        Convolutional Networks. NeurIPS 2018. [arXiv:1806.00468](https://arxiv.org/abs/1806.00468)
    """

    filters: Float[Array, "depth d"]

    @classmethod
    def normal(cls, size: int, depth: int, std: float, *, key: Key[Array, ""]) -> "Convolutional":
        """Independent entries N(0, std²)."""
        shape = count("depth", depth), count("size", size)
        return cls(scale_of("std", std) * jax.random.normal(key, shape))

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """⟨u_L, u_{L−1} ⋆ ⋯ ⋆ u₁ ⋆ x⟩."""
        layer = lambda h, u: jnp.fft.irfft(jnp.conj(jnp.fft.rfft(u)) * jnp.fft.rfft(h), n=h.size)
        return jnp.dot(self.filters[-1], reduce(layer, self.filters[:-1], x))

    def effective(self) -> Float[Array, " d"]:
        """β with f(x) = β·x."""
        return jnp.fft.irfft(jnp.prod(jnp.fft.rfft(self.filters), axis=0), n=self.filters.shape[1])
