"""Diagonal linear networks."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow._numbers import count
from gflow.models._checks import scale_of


class Diagonal(eqx.Module):
    """f(x) = β·x with β = uᴰ − vᴰ, or uᴰ if `v` is `None`: the weights of all D layers are shared.

    Without v it is the toy model of incremental learning, σᵢ = wᵢᴺ. With it, the flow of the squared error
    from u = v = α goes from the smallest ℓ₂ norm to the smallest ℓ₁ norm as α goes from ∞ to 0; at depth 2
    u ⊙ v is conserved.

    **Raises:** `ValueError` unless D and `size` are positive integers and `scale` is positive and finite.

    ??? cite "References"

        D. Gissin, S. Shalev-Shwartz and A. Daniely. The Implicit Bias of Depth: How Incremental Learning
        Drives Generalization. ICLR 2020. [arXiv:1909.12051](https://arxiv.org/abs/1909.12051)

        B. Woodworth et al. Kernel and Rich Regimes in Overparametrized Models. COLT 2020.
        [arXiv:2002.09277](https://arxiv.org/abs/2002.09277)
    """

    u: Float[Array, " d"]
    v: Float[Array, " d"] | None
    depth: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        count("depth", self.depth)

    @classmethod
    def constant(cls, size: int, scale: float, depth: int = 2, *, signed: bool = True) -> "Diagonal":
        """All weights equal to `scale`, so that β = 0, or scaleᴰ if not `signed`."""
        weights = jnp.full(count("size", size), scale_of("scale", scale), float)
        return cls(weights, weights if signed else None, depth)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """β·x."""
        return jnp.dot(self.effective(), x)

    def effective(self) -> Float[Array, " d"]:
        """β."""
        positive = self.u**self.depth
        return positive if self.v is None else positive - self.v**self.depth


class UnsharedDiagonal(eqx.Module):
    """f(x) = β·x with β = u₁ ⊙ ⋯ ⊙ u_D − v₁ ⊙ ⋯ ⊙ v_D, or without the second term if `v` is `None`.

    The flow conserves uⱼ² − uₖ² in every coordinate, and so do the layers of v.

    **Raises:** `ValueError` unless `size` is a positive integer and all `scales` are positive and finite.

    ??? cite "Reference"

        S. Azulay et al. On the Implicit Bias of Initialization Shape: Beyond Infinitesimal Mirror Descent.
        ICML 2021. [arXiv:2102.09769](https://arxiv.org/abs/2102.09769)
    """

    u: Float[Array, "depth d"]
    v: Float[Array, "depth d"] | None = None

    @classmethod
    def constant(cls, size: int, scales: Sequence[float], *, signed: bool = True) -> "UnsharedDiagonal":
        """All weights of layer j equal to scales[j], so that β = 0, or their product if not `signed`."""
        if not len(scales):
            raise ValueError("scales must hold the weight of one layer at least, but none came.")
        layers = [jnp.full(count("size", size), scale_of("scales", scale), float) for scale in scales]
        return cls(jnp.stack(layers), jnp.stack(layers) if signed else None)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """β·x."""
        return jnp.dot(self.effective(), x)

    def effective(self) -> Float[Array, " d"]:
        """β."""
        positive = jnp.prod(self.u, axis=0)
        return positive if self.v is None else positive - jnp.prod(self.v, axis=0)
