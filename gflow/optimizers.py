"""Optimisers of the literature on implicit bias that optax doesn't have, as optax transformations.

Steepest descent with respect to a norm goes to the maximum margin in that norm. optax has two of them:
`optax.sign_sgd(rate)` is steepest descent in ℓ∞, and `optax.chain(optax.normalize_by_update_norm(),
optax.scale_by_learning_rate(rate))` is normalised gradient descent, steepest in ℓ2. The one in ℓ1 is here.

All of them need a gradient that doesn't vanish with the loss: on separable data pass
`loss=gflow.losses.Log(gflow.losses.Exponential())`, whose gradient has the same direction. That of the loss
itself soon falls below the `eps` of normalised descent, and in the end underflows.
"""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

__all__ = ["coordinate_descent"]


def coordinate_descent(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Steepest descent in ℓ1: θ_j ← θ_j − η sign(∂_j L) for the one coordinate j of largest |∂_j L|.

    Every step has length η. Of equal coordinates the first moves; a gradient of 0 moves nothing.

    **Arguments:** `learning_rate` is η, or an optax schedule of it.

    ??? cite "Reference"

        S. Gunasekar, J. Lee, D. Soudry and N. Srebro. Characterizing Implicit Bias in Terms of Optimization
        Geometry. ICML 2018. [arXiv:1802.08246](https://arxiv.org/abs/1802.08246)
    """

    def largest(updates: optax.Updates, _: optax.Params | None = None) -> optax.Updates:
        flat, unravel = ravel_pytree(updates)
        chosen = jax.nn.one_hot(jnp.argmax(jnp.abs(flat)), flat.size, dtype=flat.dtype)
        return unravel(chosen * jnp.sign(flat))

    return optax.chain(optax.stateless(largest), optax.scale_by_learning_rate(learning_rate))
