"""Losses: what the model is trained on.

Every loss here is a mean over examples, L(θ) = (1/n) Σᵢ ℓ(f(xᵢ; θ), yᵢ), and says which ℓ. The
constants matter: they change time, sharpness and the learning rate at which descent turns unstable,
so gflow differentiates exactly the formula below and never rescales it.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, Shaped

__all__ = [
    "AbstractExponentialTail",
    "AbstractLoss",
    "CrossEntropy",
    "Exponential",
    "Log",
    "Logistic",
    "Squared",
]


class AbstractLoss(eqx.Module):
    """A loss that is a mean over examples of a function of one output and one target.

    To define one, subclass it, implement `per_example`, and (to refuse unsuitable data with a clear
    sentence) `check`. Any callable `(model, data) -> scalar` is accepted wherever a loss is; it need
    not derive from this class.
    """

    @abc.abstractmethod
    def per_example(self, output: Shaped[Array, "..."], target: Shaped[Array, "..."]) -> Array:
        """ℓ(f(x), y), the scalar loss of one example."""

    @abc.abstractmethod
    def check(self, output: jax.ShapeDtypeStruct, targets: Shaped[np.ndarray, "n ..."]) -> None:
        """Raises `ValueError` if `targets` can't be targets of a model with such an `output`."""

    def __call__(self, model: Callable, data: tuple[PyTree, Any]) -> Float[Array, ""]:
        """L = (1/n) Σᵢ ℓ(model(xᵢ), yᵢ) for data = (x, y) with the examples along the leading axis."""
        x, y = data
        outputs = jax.vmap(model)(x)
        return jnp.mean(jax.vmap(self.per_example)(outputs, y))


class AbstractExponentialTail(AbstractLoss):
    """A loss of classification whose logarithm is known even where the loss itself underflows."""

    @abc.abstractmethod
    def log_per_example(self, output: Shaped[Array, "..."], target: Shaped[Array, "..."]) -> Array:
        """log ℓ(f(x), y), accurate for every output."""


class Log(eqx.Module):
    """The logarithm of a loss of classification, log L = log (1/n) Σᵢ ℓ(f(xᵢ), yᵢ).

    Its gradient flow dθ/dτ = −∇log L runs along the path of the flow of L, in log-loss time dτ = L dt. Where
    plain time needs t = e^s for a margin s, τ grows only like s, and nothing underflows: log L is taken by
    logsumexp from the logarithms of ℓ. Its gradient descent is that of L with the step η/L.

    **Arguments:** `loss` is `Logistic()`, `Exponential()`, `CrossEntropy()` or another
    [`gflow.losses.AbstractExponentialTail`][]. It is no mean over examples, so that `chunk_size` can't be
    used.

    ??? cite "Reference"

        K. Lyu and J. Li. Gradient Descent Maximizes the Margin of Homogeneous Neural Networks. ICLR 2020.
        [arXiv:1906.05890](https://arxiv.org/abs/1906.05890)
    """

    loss: AbstractExponentialTail

    def __init__(self, loss: AbstractLoss):
        if not isinstance(loss, AbstractExponentialTail):
            raise ValueError(
                f"loss must be Logistic(), Exponential(), CrossEntropy() or another AbstractExponentialTail "
                f"for Log, but {loss!r} came; for any other loss write lambda model, data: "
                "jnp.log(loss(model, data))."
            )
        self.loss = loss

    def check(self, output: jax.ShapeDtypeStruct, targets: Shaped[np.ndarray, "n ..."]) -> None:
        """Raises `ValueError` if `targets` can't be targets of a model with such an `output`."""
        self.loss.check(output, targets)

    def __call__(self, model: Callable, data: tuple[PyTree, Any]) -> Float[Array, ""]:
        """log L for data = (x, y) with the examples along the leading axis."""
        x, y = data
        logs = jax.vmap(self.loss.log_per_example)(jax.vmap(model)(x), y)
        return jax.nn.logsumexp(logs) - jnp.log(jnp.asarray(logs.size, logs.dtype))


class Squared(AbstractLoss):
    """Squared error, L = (1/n) Σᵢ ½‖f(xᵢ) − yᵢ‖², summed over outputs and averaged over examples.

    Outputs and targets are real, of the same shape. Its Hessian at a perfect fit is the Gauss-Newton
    matrix (1/n) Σᵢ Jᵢᵀ Jᵢ.
    """

    def per_example(self, output, target):
        """½‖output − target‖²."""
        return 0.5 * jnp.sum(jnp.square(output - target))

    def check(self, output, targets):
        """Raises `ValueError` unless each target has the shape of an output and is real."""
        _same_shape("Squared", output, targets)
        if not _is_real(targets):
            raise ValueError(
                f"y must hold real numbers for the squared error, but has dtype {targets.dtype}; "
                "convert it to floats."
            )


class Logistic(AbstractExponentialTail):
    """Logistic loss of a binary classifier, L = (1/n) Σᵢ log(1 + exp(−yᵢ f(xᵢ))), labels y = ±1.

    Evaluated as softplus(−y f), which neither overflows nor loses the tail. An output of several
    numbers is summed over.
    """

    def per_example(self, output, target):
        """log(1 + exp(−target · output)), summed over outputs."""
        return jnp.sum(jax.nn.softplus(-target * output))

    def log_per_example(self, output, target):
        """log log(1 + exp(−target · output)), of the sum over outputs."""
        return jax.nn.logsumexp(_log_softplus(-target * output))

    def check(self, output, targets):
        """Raises `ValueError` unless each target has the shape of an output and is +1 or −1."""
        _same_shape("Logistic", output, targets)
        check_signs(targets, "loss=Logistic()")


class Exponential(AbstractExponentialTail):
    """Exponential loss of a binary classifier, L = (1/n) Σᵢ exp(−yᵢ f(xᵢ)), labels y = ±1.

    An output of several numbers is summed over.
    """

    def per_example(self, output, target):
        """exp(−target · output), summed over outputs."""
        return jnp.sum(jnp.exp(-target * output))

    def log_per_example(self, output, target):
        """−target · output; logsumexp over several outputs."""
        return jax.nn.logsumexp(-target * output)

    def check(self, output, targets):
        """Raises `ValueError` unless each target has the shape of an output and is +1 or −1."""
        _same_shape("Exponential", output, targets)
        check_signs(targets, "loss=Exponential()")


class CrossEntropy(AbstractExponentialTail):
    """Cross-entropy, L = (1/n) Σᵢ [log Σₖ exp f(xᵢ)ₖ − f(xᵢ)_{yᵢ}], labels y = 0 … K−1.

    f(x) is the vector of K ≥ 2 logits and y an integer array of shape (n,).
    """

    def per_example(self, output, target):
        """logsumexp(output) − output[target]."""
        return optax.losses.softmax_cross_entropy_with_integer_labels(output, target)

    def log_per_example(self, output, target):
        """log log(1 + exp z), z = log Σ_{k≠target} exp outputₖ − output[target]."""
        others = jnp.where(jnp.arange(output.size) == target, -jnp.inf, output)
        return _log_softplus(jax.nn.logsumexp(others) - output[target])

    def check(self, output, targets):
        """Raises `ValueError` unless the output is a vector of logits and targets index it."""
        if len(output.shape) != 1 or output.shape[0] < 2:
            raise ValueError(
                "loss=CrossEntropy() needs a model whose output on one example is a vector of at "
                f"least two logits, but the output has shape {output.shape}; use Logistic() for one "
                "logit."
            )
        check_classes(targets, output.shape[0], "the cross-entropy")


def default_loss(output: jax.ShapeDtypeStruct, target: jax.ShapeDtypeStruct) -> AbstractLoss:
    """The loss taken when none is given, from the shapes and dtypes of one output and one target.

    Cross-entropy for integer targets of a model with several outputs, squared error for floating
    targets of the shape of the output; anything else is a `ValueError` that names the choices.
    """
    if jnp.issubdtype(target.dtype, jnp.floating) and target.shape == output.shape:
        return Squared()
    if jnp.issubdtype(target.dtype, jnp.floating) and target.shape == () and output.shape == (1,):
        raise ValueError(
            "y must have one entry per output for the squared error, shape (n, 1), but has shape (n,) with a "
            "model whose output on one example has shape (1,); pass y[:, None], or another loss."
        )
    several = len(output.shape) == 1 and output.shape[0] >= 2
    if jnp.issubdtype(target.dtype, jnp.integer) and several and target.shape == ():
        return CrossEntropy()
    raise ValueError(
        f"loss must be given, because it can't be told from an output of shape {output.shape} and a "
        f"target of shape {target.shape} and dtype {target.dtype}: choose gflow.losses.Squared() "
        "(floating targets of the shape of the output), CrossEntropy() (integer labels, several "
        "outputs), Logistic() or Exponential() (labels ±1), or any callable (model, data) -> scalar."
    )


def _log_softplus(z: Array) -> Array:
    """log log(1 + eᶻ), which is z − eᶻ/2 + O(e²ᶻ) where softplus underflows, with its derivative."""
    far = z < -20
    return jnp.where(far, z - jnp.exp(z) / 2, jnp.log(jax.nn.softplus(jnp.where(far, 0, z))))


def _same_shape(name: str, output: jax.ShapeDtypeStruct, targets: np.ndarray) -> None:
    if targets.shape[1:] != output.shape:
        raise ValueError(
            f"y must hold one target of the shape of the model's output, {output.shape}, for each "
            f"example under loss={name}(), but its targets have shape {targets.shape[1:]}; reshape y "
            "or squeeze the output."
        )


def check_signs(targets: np.ndarray, what: str) -> None:
    """Raises `ValueError` unless all labels are +1 or -1; `what` needs them."""
    values: Any = np.unique(targets) if _is_real(targets) else targets[:3]
    if not _is_real(targets) or not np.all(np.isin(values, (-1, 1))):
        shown = ", ".join(str(v) for v in values[:5])
        raise ValueError(
            f"y must hold the labels +1 and -1 for {what}, but holds {shown} (dtype {targets.dtype}); "
            "map the two classes to ±1."
        )


def _is_real(targets: np.ndarray) -> bool:
    real = (jnp.floating, jnp.integer)  # jnp's, because bfloat16 is no floating type to NumPy
    return any(jnp.issubdtype(targets.dtype, kind) for kind in real)


def check_classes(targets: np.ndarray, classes: int, what: str) -> None:
    """Raises `ValueError` unless all labels are integers from 0 to `classes` - 1; `what` needs them."""
    if targets.dtype.kind not in "iu" or targets.ndim != 1:
        raise ValueError(
            f"y must be a one-dimensional array of integer class labels for {what}, but has dtype "
            f"{targets.dtype} and shape {targets.shape}; pass labels 0 … K-1, or another loss."
        )
    if targets.size and (targets.min() < 0 or targets.max() >= classes):
        raise ValueError(
            f"y must hold labels from 0 to {classes - 1}, because the model has {classes} outputs, but runs "
            f"from {targets.min()} to {targets.max()}; relabel y or give the model as many outputs as there "
            "are classes."
        )
