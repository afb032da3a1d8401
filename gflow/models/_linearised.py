"""A model linearised in its parameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from gflow import _tree


class Linearised(eqx.Module):
    """f(x; θ₀) + ⟨∇f(x; θ₀), δ⟩, of first order in the parameters: its flow is that of the tangent kernel.

    Its parameters are the displacement δ = θ − θ₀, at first 0, in the form of θ. The model at θ₀ is kept
    beside it and not trained: pass `trainable=model.trainable` to `integrate` and the other verbs.

    **Arguments:** `model` is any model, and `trainable` selects its parameters θ as in [`gflow.Problem`][].

    ??? cite "References"

        A. Jacot, F. Gabriel and C. Hongler. Neural Tangent Kernel: Convergence and Generalization in Neural
        Networks. NeurIPS 2018. [arXiv:1806.07572](https://arxiv.org/abs/1806.07572)

        L. Chizat, E. Oyallon and F. Bach. On Lazy Training in Differentiable Programming. NeurIPS 2019.
        [arXiv:1812.07956](https://arxiv.org/abs/1812.07956)
    """

    displacement: PyTree[Array]
    start: PyTree

    def __init__(self, model: Callable, trainable: PyTree | Callable[[Any], bool] | None = None):
        params, _ = _tree.partition(model, trainable)
        self.displacement = jtu.tree_map(jnp.zeros_like, params)
        self.start = model

    @property
    def trainable(self) -> "Linearised":
        """The filter specification that selects the displacement."""
        nothing = jtu.tree_map(lambda _: False, self)
        everything = jtu.tree_map(lambda _: True, self.displacement)
        return eqx.tree_at(lambda m: m.displacement, nothing, everything)

    def __call__(self, x: PyTree) -> PyTree[Array]:
        """f(x; θ₀) + ⟨∇f(x; θ₀), δ⟩, for the cost of about two evaluations of f."""
        moves = lambda delta: delta is not None
        chosen = jtu.tree_map(moves, self.displacement, is_leaf=lambda leaf: leaf is None)
        params, rest = eqx.partition(self.start, chosen)
        value, slope = jax.jvp(lambda p: eqx.combine(p, rest)(x), (params,), (self.displacement,))
        return jtu.tree_map(jnp.add, value, slope)
