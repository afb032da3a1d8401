"""The linear predictor that a network realises, and how far the network is from linear."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow.bias._homogeneity import Inputs, as_floats, outputs
from gflow.bias._norms import lp_norm


def linear_predictor(model: Callable, data: tuple[Inputs, Any]) -> Float[Array, "..."]:
    """Effective linear predictor w = (1/n) Σᵢ ∂f/∂x(xᵢ), the input gradient.

    For a model that is linear (or affine) in its input, of whatever depth and structure, the gradient is
    the same at every x and f(x) = w·x (+ b). Shape of one example, with the shape of the output in front.
    """
    with jax.default_matmul_precision("highest"):
        return jnp.mean(jax.vmap(jax.jacrev(model))(as_floats(data[0])), axis=0)


def linear_fit(model: Callable, x: Inputs) -> Float[Array, " d"]:
    """The w that fits a model of one output best on the points `x`, argmin Σᵢ (w·xᵢ − f(xᵢ))²."""
    return jnp.linalg.lstsq(jnp.asarray(x), outputs(model, x))[0]


def nonlinearity(model: Callable, x: Inputs) -> Float[Array, ""]:
    """1 − R² of the best linear fit on the points `x`: min_w Σᵢ (w·xᵢ − f(xᵢ))² / Σᵢ f(xᵢ)².

    0 for a model that is linear on them, at most 1. The fit has no intercept.
    """
    f = outputs(model, x)
    return jnp.sum((f - jnp.dot(x, linear_fit(model, x), precision="highest")) ** 2) / jnp.sum(f**2)


def frequency_norm(
    w: Float[Array, " d"] | Float[np.ndarray, " d"], order: float | int = 1
) -> Float[Array, ""]:
    """(Σₖ |ŵₖ|ᵖ)^(1/p) of the unitary discrete Fourier transform ŵ, p = `order` > 0; a quasi-norm below 1.

    **Raises:** `ValueError` unless `w` is one-dimensional and p positive.

    ??? cite "Reference"

        S. Gunasekar, J. D. Lee, D. Soudry and N. Srebro. Implicit Bias of Gradient Descent on Linear
        Convolutional Networks. NeurIPS 2018. [arXiv:1806.00468](https://arxiv.org/abs/1806.00468)
    """
    if jnp.ndim(w) != 1:
        raise ValueError(f"w must be one-dimensional, but has shape {jnp.shape(w)}; flatten it.")
    return lp_norm(jnp.abs(jnp.fft.fft(w, norm="ortho")), order)
