"""Potentials of diagonal networks: what the flow of a regression minimises among the solutions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow import _tree

_NEWTON_STEPS = 12


def _positive(alpha):
    if not _tree.is_traced(alpha) and not 0 < float(alpha) < np.inf:
        raise ValueError(f"alpha must be a positive finite scale of the initialisation, but {alpha!r} came.")
    return jnp.asarray(alpha, float) if isinstance(alpha, (int, float)) else jnp.asarray(alpha)


class Hypentropy(eqx.Module):
    """Q_α(w) = Σᵢ [wᵢ asinh(wᵢ/k) − √(wᵢ² + k²) + k] with k = 2α².

    From u = v = α the flow of the squared error of w = u² − v² is the mirror flow d∇Q/dt ∝ −∇L, and its limit
    is argmin Q_α(w) subject to Xw = y. For α → 0 that is the solution of smallest ℓ₁ norm, for α → ∞ that of
    smallest ℓ₂ norm. For w = u₊ v₊ − u₋ v₋ with both branches begun at (u₀, v₀) it is the same with
    α² = (u₀² + v₀²)/2 and w' twice as slow.

    **Arguments:** `alpha` is α > 0, the initial weight.

    **Raises:** `ValueError` for any other α.

    ??? cite "References"

        B. Woodworth et al. Kernel and Rich Regimes in Overparametrized Models. COLT 2020.
        [arXiv:2002.09277](https://arxiv.org/abs/2002.09277)

        S. Azulay et al. On the Implicit Bias of Initialization Shape: Beyond Infinitesimal Mirror Descent.
        ICML 2021. [arXiv:2102.09769](https://arxiv.org/abs/2102.09769)
    """

    alpha: Float[Array, ""] = eqx.field(converter=_positive)

    def __call__(self, w: Float[Array, "..."]) -> Float[Array, ""]:
        """Q_α(w)."""
        k = 2 * self.alpha**2
        # √(w² + k²) − k without the cancellation at small w
        return jnp.sum(w * jnp.arcsinh(w / k) - w**2 / (jnp.hypot(w, k) + k))

    def gradient(self, w: Float[Array, "..."]) -> Float[Array, "..."]:
        """∇Q(w) = asinh(w/k), the dual variable of the predictor w."""
        return jnp.arcsinh(w / (2 * self.alpha**2))

    def inverse(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """k sinh(z), the predictor whose gradient is z."""
        return 2 * self.alpha**2 * jnp.sinh(z)


class DeepHypentropy(eqx.Module):
    """The potential of w = uᴰ − vᴰ with D ≥ 3 from u = v = α: its gradient z solves w = αᴰ h(z).

    h(z) = (1 − z)^{−D/(D−2)} − (1 + z)^{−D/(D−2)} maps (−1, 1) onto the reals. The limit of the flow of a
    regression is argmin Q(w) subject to Xw = y.

    **Arguments:** `alpha` is α > 0, the initial weight, and `depth` is D ≥ 3.

    **Raises:** `ValueError` for any others.

    ??? cite "Reference"

        B. Woodworth et al. Kernel and Rich Regimes in Overparametrized Models. COLT 2020.
        [arXiv:2002.09277](https://arxiv.org/abs/2002.09277)
    """

    alpha: Float[Array, ""] = eqx.field(converter=_positive)
    depth: int = eqx.field(static=True)

    def __check_init__(self):
        if isinstance(self.depth, bool) or self.depth < 3:
            raise ValueError(
                f"depth must be an integer of at least 3, but {self.depth!r} came; Hypentropy is depth 2."
            )

    def __call__(self, w: Float[Array, "..."]) -> Float[Array, ""]:
        """Q(w) = Σᵢ [wᵢ zᵢ − αᴰ H(zᵢ)] with H' = h, H(0) = 0."""
        excess, z = self._solve(w)
        # (1 − |z|)^{−2/(D−2)} = (1 + e)^{2/D}, which keeps its digits where 1 − |z| has none
        conjugate = jnp.expm1(2 / self.depth * jnp.log1p(excess))
        conjugate += jnp.expm1(-2 / (self.depth - 2) * jnp.log1p(z))
        return jnp.sum(jnp.abs(w) * z - self.alpha**self.depth * (self.depth - 2) / 2 * conjugate)

    def gradient(self, w: Float[Array, "..."]) -> Float[Array, "..."]:
        """z = h⁻¹(w/αᴰ), by Newton's method."""
        return jnp.sign(w) * self._solve(w)[1]

    def _solve(self, w: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """e = (1 − |z|)^{−D/(D−2)} − 1, and |z|."""
        power = self.depth / (self.depth - 2)
        ratio = jnp.abs(w) / self.alpha**self.depth

        # As a function of e = (1 − |z|)^{−D/(D−2)} − 1, h is concave with a slope between 1 and 2, so that
        # Newton's method, begun to the left of the root, gets there without overshooting.
        def newton(_, e):
            z = -jnp.expm1(-jnp.log1p(e) / power)
            other = jnp.exp(-power * jnp.log1p(z))  # (1 + |z|)^{−D/(D−2)}
            value = e - jnp.expm1(-power * jnp.log1p(z))
            slope = 1 + other / (1 + z) * (1 - z) / (1 + e)
            return e + (ratio - value) / slope

        e = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, jnp.maximum(ratio / 2, ratio - 1))
        return e, -jnp.expm1(-jnp.log1p(e) / power)

    def inverse(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """αᴰ h(z), the predictor whose gradient is z, for |z| < 1."""
        power = -self.depth / (self.depth - 2)
        # by way of expm1, so that small z keep their digits
        h = jnp.expm1(power * jnp.log1p(-z)) - jnp.expm1(power * jnp.log1p(z))
        return self.alpha**self.depth * h
