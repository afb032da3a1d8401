"""Optimisers whose stability threshold is known: optax's transformations with their formulas."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from gflow._numbers import is_number
from gflow.stability._checks import at_least_zero, rate, share, threshold, transformation

_Rate = Any  # a number, or an optax schedule: step -> number


class AbstractOptimizer(eqx.Module):
    """An optax transformation whose threshold is known.

    Its numbers are checked where they are given: `ValueError` unless learning rates are positive and finite
    (or schedules), momenta and decay rates of averages in [0, 1), weight decay and ε at least 0.

    On a quadratic with Hessian H the optimiser's iterates grow along an eigenvector of H, or of
    P^{-1/2} H P^{-1/2} if it divides the gradient by a diagonal P, whose eigenvalue exceeds the threshold.
    """

    @property
    @abc.abstractmethod
    def quantity(self) -> str:
        """The record that the threshold is for: `"sharpness"` or `"preconditioned_sharpness"`."""

    @property
    def scheduled(self) -> bool:
        """Whether the threshold changes from step to step, because a schedule was given."""
        return any(callable(value) for value in vars(self).values())

    @property
    def step_time(self) -> float | None:
        """The flow time that a step is worth: η, or η/(1 − β) with momentum β.

        `None` where it changes, and for optimisers that divide the gradient, which don't follow that flow.
        """
        return None

    @abc.abstractmethod
    def transformation(self) -> optax.GradientTransformation:
        """Optax's own transformation."""

    @abc.abstractmethod
    def threshold(self, step: Any = 0) -> Any:
        """The threshold for the step from θ_k, k = `step` (one or an array of them)."""

    @abc.abstractmethod
    def preconditioner(self, state: PyTree) -> PyTree[Array] | None:
        """The diagonal P of the update that led to the optimiser's state `state`, like the parameters.

        `None` where the gradient is not scaled.
        """


class _AbstractUnscaled(AbstractOptimizer):
    """One that takes the gradient as it is."""

    @property
    def quantity(self):
        """`"sharpness"`."""
        return "sharpness"

    def preconditioner(self, state):
        """None."""
        del state
        return None


class _AbstractScaled(AbstractOptimizer):
    """One that divides the gradient by a diagonal P."""

    @property
    def quantity(self):
        """`"preconditioned_sharpness"`."""
        return "preconditioned_sharpness"


class GradientDescent(_AbstractUnscaled):
    """θ ← θ − η (∇L + wθ), unstable where the sharpness exceeds 2/η − w.

    `learning_rate` η is a number or an optax schedule, `weight_decay` w.
    """

    learning_rate: _Rate = eqx.field(converter=rate)
    weight_decay: float = eqx.field(static=True, converter=at_least_zero("weight_decay"), default=0.0)

    @property
    def step_time(self):
        """η."""
        return _time(self.learning_rate)

    def transformation(self):
        """`optax.sgd`."""
        return _decayed(self.weight_decay, optax.sgd(self.learning_rate))

    def threshold(self, step=0):
        """2/η − w."""
        return 2 / _at(self.learning_rate, step) - self.weight_decay


class Polyak(_AbstractUnscaled):
    """v ← βv + ∇L + wθ, θ ← θ − ηv, unstable where the sharpness exceeds (2 + 2β)/η − w.

    Source: Cohen et al., *Gradient descent on neural networks typically occurs at the edge of stability*
    (arXiv:2103.00065).
    """

    learning_rate: _Rate = eqx.field(converter=rate)
    momentum: Any = eqx.field(converter=share("momentum"))
    weight_decay: float = eqx.field(static=True, converter=at_least_zero("weight_decay"), default=0.0)

    @property
    def step_time(self):
        """η/(1 − β)."""
        return _time(self.learning_rate, self.momentum)

    def transformation(self):
        """`optax.sgd` with momentum."""
        return _decayed(self.weight_decay, optax.sgd(self.learning_rate, self.momentum))

    def threshold(self, step=0):
        """(2 + 2β)/η − w."""
        return (2 + 2 * self.momentum) / _at(self.learning_rate, step) - self.weight_decay


class Nesterov(_AbstractUnscaled):
    """g = ∇L + wθ, v ← βv + g, θ ← θ − η(g + βv), unstable above (2 + 2β)/(η(1 + 2β)) − w.

    Source: Cohen et al. (arXiv:2103.00065).
    """

    learning_rate: _Rate = eqx.field(converter=rate)
    momentum: Any = eqx.field(converter=share("momentum"))
    weight_decay: float = eqx.field(static=True, converter=at_least_zero("weight_decay"), default=0.0)

    @property
    def step_time(self):
        """η/(1 − β)."""
        return _time(self.learning_rate, self.momentum)

    def transformation(self):
        """`optax.sgd` with Nesterov's momentum."""
        return _decayed(self.weight_decay, optax.sgd(self.learning_rate, self.momentum, nesterov=True))

    def threshold(self, step=0):
        """(2 + 2β)/(η(1 + 2β)) − w."""
        b = self.momentum
        return (2 + 2 * b) / (_at(self.learning_rate, step) * (1 + 2 * b)) - self.weight_decay


# Decay rates of averages are part of the program and not numbers in it: 1 − β₂ in float32 would lose digits.
class RMSProp(_AbstractScaled):
    """ν ← βν + (1 − β)∇L², θ ← θ − η P⁻¹∇L, P = √(ν + ε); unstable on P^{-1/2} H P^{-1/2} above 2/η.

    Source: Cohen et al., *Adaptive gradient methods at the edge of stability* (arXiv:2207.14484).
    """

    learning_rate: _Rate = eqx.field(converter=rate)
    decay: float = eqx.field(static=True, converter=share("decay"), default=0.9)
    eps: float = eqx.field(static=True, converter=at_least_zero("eps"), default=1e-8)

    def transformation(self):
        """`optax.rmsprop`."""
        return optax.rmsprop(self.learning_rate, decay=self.decay, eps=self.eps)

    def threshold(self, step=0):
        """2/η."""
        return 2 / _at(self.learning_rate, step)

    def preconditioner(self, state):
        """√(ν + ε)."""
        return jax.tree.map(lambda nu: jnp.sqrt(nu + self.eps), state[0].nu)


class Adam(_AbstractScaled):
    """Adam with decoupled weight decay w, unstable above (1 + β₁)(2 − ηw)/((1 − β₁)η).

    The sharpness meant is that of P^{-1/2} H P^{-1/2} with P = (1 − β₁ᵏ)(√(ν/(1 − β₂ᵏ)) + ε) after k
    steps. For w = 0 the threshold is (2 + 2β₁)/((1 − β₁)η), of Cohen et al. (arXiv:2207.14484).
    """

    learning_rate: _Rate = eqx.field(converter=rate)
    b1: float = eqx.field(static=True, converter=share("b1"), default=0.9)
    b2: float = eqx.field(static=True, converter=share("b2"), default=0.999)
    eps: float = eqx.field(static=True, converter=at_least_zero("eps"), default=1e-8)
    weight_decay: float = eqx.field(static=True, converter=at_least_zero("weight_decay"), default=0.0)

    def transformation(self):
        """`optax.adamw`."""
        return optax.adamw(
            self.learning_rate, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay
        )

    def threshold(self, step=0):
        """(1 + β₁)(2 − ηw)/((1 − β₁)η)."""
        eta = _at(self.learning_rate, step)
        return (1 + self.b1) * (2 - eta * self.weight_decay) / ((1 - self.b1) * eta)

    def preconditioner(self, state):
        """(1 − β₁ᵏ)(√(ν/(1 − β₂ᵏ)) + ε)."""
        count = state[0].count

        def scale(nu):
            first, second = ((1 - b**count).astype(nu.dtype) for b in (self.b1, self.b2))
            return first * (jnp.sqrt(nu / second) + self.eps)

        return jax.tree.map(scale, state[0].nu)


class Custom(_AbstractUnscaled):
    """Any optax transformation, with the sharpness `limit` above which you know it to be unstable.

    `limit` is a number, or a function from the step to one.
    """

    optimizer: optax.GradientTransformation = eqx.field(converter=transformation)
    limit: float | Callable[[Any], Any] = eqx.field(converter=threshold)

    def transformation(self):
        """`optimizer`."""
        return self.optimizer

    def threshold(self, step=0):
        """`limit`, at `step` if it is a function."""
        return _at(self.limit, step)


def _time(learning_rate: _Rate, momentum: Any = 0.0) -> float | None:
    """The flow time of a step, if the learning rate doesn't follow a schedule."""
    return float(learning_rate) / (1 - float(momentum)) if is_number(learning_rate) else None


def _at(value: Any, step: Any) -> Any:
    return value(step) if callable(value) else value


def _decayed(weight_decay: float, descent: Any) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), descent)
