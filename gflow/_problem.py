"""The surface L(θ): a model, its data and a loss, with value, gradient and Hessian-vector product."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from gflow import _tree, losses
from gflow._errors import in_a_line


class Problem(eqx.Module):
    """The loss surface L(θ) of a model on data: its value, gradient and Hessian-vector product.

    **Arguments:**

    - `model`: any PyTree that can be called on ONE example, normally an `equinox.Module`. gflow does
        the batching, with `jax.vmap`.
    - `data`: the tuple `(x, y)`, examples along the leading axis of every array. Floating arrays are
        cast to the dtype of the parameters. With a loss of your own it may be any PyTree of arrays
        that this loss understands, or `None`.
    - `loss`: one of [`gflow.losses`][], or any callable `(model, data) -> scalar`. By default
        cross-entropy for integer targets of a model with several outputs, squared error for floating
        targets.
    - `trainable`: which leaves are the parameters θ, as an Equinox filter spec (a function of a leaf,
        or a PyTree of booleans that is a prefix of `model`). By default all inexact arrays. Leaves that
        are not inexact arrays are never parameters.
    - `chunk_size`: at most this many examples are in memory at once; value, gradient and
        Hessian-vector product are accumulated over chunks. The loss must then be a mean over examples,
        as those of [`gflow.losses`][] are. By default all examples at once.

    **Attributes:** `params` is the PyTree θ of trainable leaves, with `None` in place of the others.

    **Raises:** `ValueError` if model, data and loss don't fit together: empty or non-finite data,
    lengths or shapes that differ, labels that the loss can't use, a loss that is no real scalar,
    nothing trainable.
    """

    params: PyTree[Array]
    data: PyTree[Array]
    loss: Callable[[Any, Any], Float[Array, ""]]
    chunk_size: int | None = eqx.field(static=True)
    _frozen: PyTree

    def __init__(
        self,
        model: Callable | PyTree,
        data: PyTree,
        loss: Callable | None = None,
        *,
        trainable: PyTree | Callable[[Any], bool] | None = None,
        chunk_size: int | None = None,
    ):
        if not callable(model) and loss is None:
            raise ValueError(
                f"model must be callable on one example, but {type(model).__name__} is not; pass an "
                "equinox.Module, or a loss of your own that knows how to evaluate it."
            )
        self.params, self._frozen = partition(model, trainable)
        self.data = _as_arrays(data, self.dtype)
        self.chunk_size = _check_chunk_size(chunk_size)
        if loss is None or isinstance(loss, losses.AbstractLoss | losses.Log):
            output, target = _shapes(model, self.data)
            loss = losses.default_loss(output, target) if loss is None else loss
            if not _tree.is_traced(self.data):
                loss.check(output, np.asarray(self.data[1]))
        elif not callable(loss) or isinstance(loss, type):
            raise ValueError(
                f"loss must be one of gflow.losses or a callable (model, data) -> scalar, but "
                f"{loss if callable(loss) else type(loss).__name__} came; for example "
                "loss=gflow.losses.Squared()."
            )
        self.loss = loss
        if self.chunk_size is not None:
            _count_examples(self.data)
        self._check_loss()

    # Everything below is pure and can be used under jit, vmap and grad.

    def model(self, params: PyTree[Array]) -> Any:
        """The model with the parameters `params`: the inverse of taking `problem.params`."""
        return eqx.combine(params, self._frozen)

    def value(self, params: PyTree[Array]) -> Float[Array, ""]:
        """L(θ)."""
        return self.mean(lambda data: self.loss(self.model(params), data))

    def gradient(self, params: PyTree[Array]) -> PyTree[Array]:
        """∇L(θ), a PyTree like `params`."""
        return self.value_and_gradient(params)[1]

    def value_and_gradient(self, params: PyTree[Array]) -> tuple[Float[Array, ""], PyTree[Array]]:
        """(L(θ), ∇L(θ)) for the cost of the gradient."""

        def of_chunk(data):
            return jax.value_and_grad(lambda p: self.loss(self.model(p), data))(params)

        return self.mean(of_chunk)

    def hvp(self, params: PyTree[Array], v: PyTree[Array]) -> PyTree[Array]:
        """Hessian-vector product ∇²L(θ) v, forward over reverse: about two gradients, memory O(P)."""
        return jax.jvp(self.gradient, (params,), (v,))[1]

    def mean(self, of_chunk: Callable[[PyTree[Array]], PyTree[Array]]) -> PyTree[Array]:
        """A mean over examples, given `of_chunk(data)`, the mean over some of them, as PyTree of arrays.

        With `chunk_size` it is accumulated over chunks; value, gradient and Hessian-vector product are made
        with it.
        """
        # "highest" because TF32 products spoil gradients at 1e-3, and with them the error control.
        with jax.default_matmul_precision("highest"):
            size = self.chunk_size
            if size is None or size >= self.examples:
                return of_chunk(self.data)
            full, rest = divmod(self.examples, size)

            def chunk(start, length):
                return jtu.tree_map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, length), self.data)

            def add(total, start):
                part = of_chunk(chunk(start, size))
                return jtu.tree_map(jnp.add, total, part), None

            struct = jax.eval_shape(lambda: of_chunk(chunk(0, size)))
            zero = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), struct)
            total, _ = jax.lax.scan(add, zero, jnp.arange(full) * size)
            mean = jtu.tree_map(lambda t: t * (size / self.examples), total)
            if rest:
                last = of_chunk(chunk(full * size, rest))
                mean = jtu.tree_map(lambda m, x: m + x * (rest / self.examples), mean, last)
            return mean

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the parameters."""
        return jnp.result_type(*jtu.tree_leaves(self.params))

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(leaf.size for leaf in jtu.tree_leaves(self.params))

    @property
    def examples(self) -> int:
        """n, the number of examples; `ValueError` if the data have no common leading axis."""
        return _count_examples(self.data)

    def _check_loss(self) -> None:
        try:
            struct = _shape_of(self.loss, self.model(self.params), self.data)
        except Exception as error:  # whatever a loss of the user's own raises
            if isinstance(self.loss, losses.AbstractLoss | losses.Log):
                raise
            raise _refused(
                error,
                "loss must be a function (model, data) -> scalar, of arrays that have no values yet, but it "
                f"raised {in_a_line(error)}",
            ) from error
        leaves = jtu.tree_leaves(struct)
        shown = leaves[0] if len(leaves) == 1 else struct
        is_real = isinstance(shown, jax.ShapeDtypeStruct) and jnp.issubdtype(shown.dtype, jnp.floating)
        if not is_real or shown.shape != ():
            raise ValueError(
                f"loss must return a real scalar, but returns {shown}; reduce it over examples and "
                "outputs, for example with a mean."
            )
        if self.chunk_size is not None and not isinstance(self.loss, losses.AbstractLoss):
            self._check_mean()

    def _check_mean(self) -> None:
        """A loss of the user's own can be taken in chunks only if it is a mean over examples."""
        if self.examples < 2 or _tree.is_traced((self.params, self.data)):
            return
        model = self.model(self.params)
        # from everywhere, because masks and padding are not where the data begin, and no more than a chunk
        rows = np.linspace(0, self.examples - 1, min(self.examples, max(self.chunk_size or 2, 2))).astype(int)
        cut = (len(rows) + 2) // 3
        first, second, both = (
            float(self.loss(model, jtu.tree_map(lambda x, part=part: x[part], self.data)))
            for part in (rows[:cut], rows[cut:], rows)
        )
        expected = (cut * first + (len(rows) - cut) * second) / len(rows)
        if abs(both - expected) > 1e-3 * max(abs(first), abs(second), abs(both)):
            raise ValueError(
                "chunk_size needs a loss that is a mean over examples, but on "
                f"{cut} and {len(rows) - cut} of them loss gives {first:.6g} and {second:.6g}, and "
                f"{both:.6g} on all of these together; divide by the number of examples, or leave "
                "chunk_size out."
            )


def partition(model: PyTree, trainable: PyTree | None) -> tuple[PyTree, PyTree]:
    """The parameters, checked, and the rest of the model."""
    try:
        params, frozen = _tree.partition(model, trainable)
    except Exception as error:  # whatever a function of the user's own raises
        what = trainable if callable(trainable) and not isinstance(trainable, eqx.Module) else type(trainable)
        raise ValueError(
            "trainable must be a function that takes any leaf of model, also one that is no array, and "
            "returns a boolean, or a PyTree of booleans that is a prefix of model, but "
            f"{what} raised {in_a_line(error)}"
        ) from error
    named = jtu.tree_leaves_with_path(params)
    if sum(leaf.size for _, leaf in named) == 0:
        raise ValueError(
            "model has no trainable leaf: "
            + ("it holds no floating-point array" if trainable is None else "trainable= selects none")
            + "; parameters must be jax.numpy arrays of floats that `trainable` selects."
        )
    for path, leaf in named:
        name = jtu.keystr(path)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"model must have real parameters, but the leaf {name} has dtype {leaf.dtype}; keep "
                "real and imaginary part as two arrays."
            )
        if leaf.dtype.itemsize < 4:
            warnings.warn(
                f"the parameter {name} has dtype {leaf.dtype}, which resolves only 2-3 digits: a flow "
                "can't be followed accurately; cast the model to float32 or float64.",
                stacklevel=4,
            )
        if not _tree.is_traced(leaf) and not np.all(np.isfinite(np.asarray(leaf, dtype=np.float64))):
            raise ValueError(
                f"model must have finite parameters, but the leaf {name} contains NaN or infinity; "
                "check the initialisation."
            )
    params = jtu.tree_map(jnp.asarray, params)
    dtypes = sorted({str(leaf.dtype) for leaf in jtu.tree_leaves(params)})
    if len(dtypes) > 1:
        raise ValueError(
            f"model must have parameters of one dtype, but has {' and '.join(dtypes)}; cast them to one."
        )
    return params, frozen


def _as_arrays(data: PyTree, dtype: np.dtype) -> PyTree[Array]:
    """`data` as jax arrays, floats in `dtype`, checked to be finite."""
    is_pair = type(data) is tuple and len(data) == 2  # a named tuple keeps its type
    if is_pair:
        data = tuple(_from_lists(part) for part in data)

    def convert(path, leaf):
        name = "data" + jtu.keystr(path)
        if is_pair and path:
            name = "xy"[path[0].idx] + jtu.keystr(path[1:])
        try:
            array = jnp.asarray(leaf)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} must be a numeric array, but is {type(leaf).__name__}; convert it with "
                "numpy.asarray."
            ) from error
        if jnp.issubdtype(array.dtype, jnp.floating):
            if not _tree.is_traced(array) and not np.all(np.isfinite(np.asarray(array, np.float64))):
                bad = np.argwhere(~np.isfinite(np.asarray(array, np.float64)))[0]
                raise ValueError(
                    f"{name} must be finite, but holds NaN or infinity, first at index "
                    f"{tuple(int(i) for i in bad)}; remove or impute those examples."
                )
            array = array.astype(dtype)
        return array

    return jtu.tree_map_with_path(convert, data)


def _from_lists(part: PyTree) -> PyTree:
    """Lists of numbers are arrays, not PyTrees of scalars."""
    numbers = jtu.tree_leaves(part)
    if isinstance(part, (list, tuple)) and all(isinstance(leaf, (bool, int, float)) for leaf in numbers):
        return np.asarray(part)
    return part


def _count_examples(data: PyTree[Array]) -> int:
    leaves = jtu.tree_leaves(data)
    lengths = {leaf.shape[:1] for leaf in leaves}
    if len(lengths) != 1 or () in lengths:
        shapes = ", ".join(str(leaf.shape) for leaf in leaves)
        raise ValueError(
            "data must hold arrays with one common leading axis of examples, but their shapes are "
            f"{shapes or '(none)'}; chunks and mini-batches are taken along that axis."
        )
    return leaves[0].shape[0]


def _shapes(model: Callable, data: PyTree[Array]) -> tuple[jax.ShapeDtypeStruct, Any]:
    """Shape and dtype of the model's output on one example and of one target."""
    if not (isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], jax.Array)):
        what = type(data).__name__
        if isinstance(data, (list, tuple)):
            what = f"a {what} of {', '.join(type(part).__name__ for part in data) or 'nothing'}"
        raise ValueError(
            f"data must be a tuple (x, y) of inputs and a target array, but is {what}; write (x, y), or pass "
            "a loss of your own, which may take other data."
        )
    x, y = data
    if len(set(leaf.shape[:1] for leaf in jtu.tree_leaves(data))) != 1 or y.ndim == 0:
        shapes = ", ".join(str(leaf.shape) for leaf in jtu.tree_leaves(x))
        raise ValueError(
            f"x and y must have the same number of examples along their leading axis, but have shapes "
            f"{shapes} and {y.shape}; cut or repeat one of them."
        )
    if y.shape[0] == 0:
        raise ValueError(
            f"data must hold at least one example, but x and y are empty (y has shape {y.shape})."
        )
    one = jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data)
    try:
        output = _shape_of(model, one[0])
    except Exception as error:  # whatever a model of the user's own raises
        shapes = ", ".join(str(leaf.shape) for leaf in jtu.tree_leaves(one[0]))
        raise _refused(
            error,
            f"x must hold examples on each of which the model can be called, but on one of shape {shapes} it "
            f"raised {in_a_line(error)}; bring x into the shape that the model takes for one example, write "
            "the model for one (gflow adds vmap; for many models at once there is ensemble=True), or pass a "
            "loss of your own that calls it.",
        ) from error
    if not isinstance(output, jax.ShapeDtypeStruct):
        raise ValueError(
            "model must return one array for one example, but returns "
            f"{type(output).__name__}; wrap it, or pass a loss of your own."
        )
    return output, one[1]


@eqx.filter_jit  # so that the same model is traced once, however many problems are made of it
def _called(function, *arguments):
    return function(*arguments)


def _shape_of(function: Callable, *arguments: PyTree) -> PyTree:
    """Shapes and dtypes of `function(*arguments)`, without evaluating it."""
    return eqx.filter_eval_shape(_called, function, *arguments)


def _refused(error: Exception, sentence: str) -> ValueError:
    """What to say of an error in a function of the user's own."""
    if isinstance(error, RuntimeError) and "requires a key" in str(error):  # Equinox's words for dropout
        sentence = (
            "model must be deterministic, but a layer of it asked for a random key; switch dropout off "
            "with equinox.nn.inference_mode(model)."
        )
    return ValueError(sentence)


def _check_chunk_size(chunk_size: int | None) -> int | None:
    if chunk_size is not None and (
        not isinstance(chunk_size, (int, np.integer)) or isinstance(chunk_size, bool) or chunk_size < 1
    ):
        raise ValueError(
            f"chunk_size must be a positive number of examples or None, but {chunk_size!r} came."
        )
    return None if chunk_size is None else int(chunk_size)
