"""One neuron, and a layer of (leaky) ReLU neurons."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gflow._numbers import count, is_number
from gflow.models._checks import scale_of


class Neuron(eqx.Module):
    """f(x) = a φ(w·x), or φ(w·x) if `a` is `None`, with any activation φ.

    If φ is homogeneous of degree one and a > 0, then f(x) = φ(β·x) with β = a w, and the flow conserves
    a² − ‖w‖².

    **Raises:** `ValueError` unless `size` is a positive integer and `scale` positive and finite.

    ??? cite "Reference"

        G. Vardi and O. Shamir. Implicit Regularization in ReLU Networks with the Square Loss. COLT 2021.
        [arXiv:2012.05156](https://arxiv.org/abs/2012.05156)
    """

    w: Float[Array, " d"]
    a: Float[Array, ""] | None = None
    activation: Callable[[Array], Array] = eqx.field(static=True, default=jax.nn.relu)

    @classmethod
    def normal(
        cls,
        size: int,
        scale: float,
        *,
        key: Key[Array, ""],
        activation: Callable[[Array], Array] = jax.nn.relu,
    ) -> "Neuron":
        """Entries of w are N(0, scale²/d), and there is no a."""
        w = scale_of("scale", scale) / size**0.5 * jax.random.normal(key, (count("size", size),))
        return cls(w, None, activation)

    @classmethod
    def balanced(
        cls,
        size: int,
        scale: float,
        *,
        key: Key[Array, ""],
        activation: Callable[[Array], Array] = jax.nn.relu,
    ) -> "Neuron":
        """a = ‖w‖ = scale, in a random direction."""
        direction = jax.random.normal(key, (count("size", size),))
        w = scale_of("scale", scale) * direction / jnp.linalg.norm(direction)
        return cls(w, jnp.asarray(scale, w.dtype), activation)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """a φ(w·x)."""
        out = self.activation(jnp.dot(self.w, x))
        return out if self.a is None else self.a * out

    def effective(self) -> Float[Array, " d"]:
        """β = a w, or w."""
        return self.w if self.a is None else self.a * self.w


class TwoLayer(eqx.Module):
    """f(x) = Σⱼ vⱼ φ(wⱼ·x) with φ(z) = max(z, slope·z): ReLU for slope 0, leaky above.

    It is homogeneous of degree 2. There are no biases: give x a coordinate that is 1. At a kink the
    derivative of φ is that of `jax.numpy.where(z > 0, z, slope * z)`.

    **Raises:** `ValueError` unless `slope` is from 0 to 1, sizes are positive integers and `scale` is
    positive and finite.

    ??? cite "Reference"

        K. Lyu and J. Li. Gradient Descent Maximizes the Margin of Homogeneous Neural Networks. ICLR 2020.
        [arXiv:1906.05890](https://arxiv.org/abs/1906.05890)
    """

    w: Float[Array, "width d"]
    v: Float[Array, " width"]
    slope: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        if not (is_number(self.slope) and 0 <= self.slope <= 1):
            raise ValueError(f"slope must be from 0 (ReLU) to 1 (linear), but {self.slope!r} came.")

    @classmethod
    def balanced(
        cls, size: int, width: int, scale: float, *, key: Key[Array, ""], slope: float = 0.0
    ) -> "TwoLayer":
        """Entries of w are N(0, scale²/d), vⱼ = ±‖wⱼ‖ at random: the flow conserves vⱼ² − ‖wⱼ‖²."""
        for_w, for_v = jax.random.split(key)
        shape = count("width", width), count("size", size)
        w = scale_of("scale", scale) / size**0.5 * jax.random.normal(for_w, shape)
        return cls(w, jax.random.rademacher(for_v, (width,), w.dtype) * jnp.linalg.norm(w, axis=1), slope)

    @classmethod
    def features(cls, size: int, width: int, *, key: Key[Array, ""], slope: float = 0.0) -> "TwoLayer":
        """Random features: entries of w are N(0, 1/d), v = 0.

        Pass `trainable=TwoLayer(False, True)`, so that only v is trained.
        """
        shape = count("width", width), count("size", size)
        w = jax.random.normal(key, shape) / size**0.5
        return cls(w, jnp.zeros(width, w.dtype), slope)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Σⱼ vⱼ φ(wⱼ·x)."""
        z = self.w @ x
        return jnp.dot(self.v, jnp.where(z > 0, z, self.slope * z))
