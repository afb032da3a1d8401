"""One compiled call made again and again on what it returned, with little work for Python in between."""

from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree


class Repeat:
    """`state = function(fixed, state, *numbers)`, over and over, and `look(fixed, state)` after each.

    To take models and states apart at every call and put the result together costs a small problem more
    than its steps do. Here that happens once: between calls the state is a list of arrays. Functions, form
    and shapes decide what is compiled, so that a second `Repeat` of the same form compiles nothing.
    """

    def __init__(self, function: Callable, look: Callable, fixed: PyTree, state: PyTree):
        self._functions = function, look
        self._fixed, self._fixed_form = _apart(fixed)
        self._state, self._form = _apart(state)

    def get(self) -> PyTree:
        """The state."""
        return _together(self._state, self._form)

    def __call__(self, *numbers: np.ndarray) -> Any:
        """Makes one call; returns what `look` sees after it."""
        self._state, seen = _call(
            self._functions, self._fixed_form, self._form, self._fixed, self._state, numbers
        )
        return seen

    def ask(self, question: Callable, *arguments: PyTree) -> Any:
        """`question(fixed, state, *arguments)`, compiled; the state stays as it is."""
        return _ask(question, self._fixed_form, self._form, self._fixed, self._state, arguments)


@eqx.filter_jit  # cheap on lists of arrays, and it tells what error a model raised
def _call(functions, fixed_form, form, fixed, state, numbers):
    function, look = functions
    fixed = _together(fixed, fixed_form)
    after = function(fixed, _together(state, form), *numbers)
    leaves, form_after = _apart(after)
    assert form_after == form, "the state must keep its form"
    return leaves, look(fixed, after)


@eqx.filter_jit
def _ask(question, fixed_form, form, fixed, state, arguments):
    return question(_together(fixed, fixed_form), _together(state, form), *arguments)


def _apart(tree: PyTree) -> tuple[list[Array], Hashable]:
    """The arrays of a tree, and everything else."""
    leaves, structure = jtu.tree_flatten(tree)
    rest = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
    return [leaf for leaf in leaves if eqx.is_array(leaf)], (structure, rest)


def _together(arrays: list[Array], form: Any) -> PyTree:
    structure, rest = form
    remaining = iter(arrays)
    # tree_flatten gives no leaf that is None, so None stands for an array
    return jtu.tree_unflatten(structure, [next(remaining) if leaf is None else leaf for leaf in rest])
