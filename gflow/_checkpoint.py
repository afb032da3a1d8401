"""A file from which an interrupted run goes on, bit for bit."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import PyTree

from gflow import _tree
from gflow._trajectory import read_archive, without_folder, write_archive

_SECONDS_BETWEEN = 30.0


class Checkpoint:
    """Keeps PyTrees and a JSON header in a file that belongs to one run.

    `numbers` and `programs` are everything that decides the run: its arrays, and the compiled functions as
    `program` gives them. A file written by another run is refused.
    """

    def __init__(self, path: str | os.PathLike, numbers: PyTree, programs: Sequence[str]):
        if not isinstance(path, str | os.PathLike):
            raise ValueError(
                f"checkpoint must be the path of a file, but a {type(path).__name__} came; for example "
                'checkpoint="run.gflow".'
            )
        self.path = Path(path)
        if sentence := without_folder("checkpoint", self.path):
            raise ValueError(sentence)
        digest = hashlib.sha256("".join(programs).encode())
        for leaf in jtu.tree_leaves(eqx.filter(numbers, eqx.is_array)):
            array = np.asarray(_tree.numbers(leaf))
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        self._fingerprint = digest.hexdigest()
        self._written = monotonic()

    def is_due(self) -> bool:
        """Whether the last one is old enough to be replaced."""
        return monotonic() - self._written > _SECONDS_BETWEEN

    def write(self, header: Mapping[str, Any], trees: Mapping[str, PyTree]) -> None:
        """Replaces the file."""
        arrays = {
            f"{name}/{i}": leaf
            for name, tree in trees.items()
            for i, leaf in enumerate(map(_tree.numbers, jtu.tree_leaves(eqx.filter(tree, eqx.is_array))))
        }
        write_archive(self.path, "checkpoint", {**header, "fingerprint": self._fingerprint}, arrays)
        self._written = monotonic()

    def read(
        self, like: Callable[[dict[str, Any]], Mapping[str, PyTree]], rows: Sequence[str] = ()
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Header and trees as they were written; None without a file.

        The trees that `like` makes of the header give those of the same names their structure; those named in
        `rows` come as lists of leaves.
        """
        if not self.path.exists():
            return None
        header, arrays = read_archive(self.path, "checkpoint")
        if header["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"checkpoint={str(self.path)!r} belongs to another run (its model, data, horizon, records or "
                "tolerances differ, or the versions of the libraries); give this one a file of its own."
            )
        trees = {}
        for name, tree in like(header).items():
            dynamic, static = eqx.partition(tree, eqx.is_array)
            leaves = [
                _tree.from_numbers(leaf, arrays[f"{name}/{i}"])
                for i, leaf in enumerate(jtu.tree_leaves(dynamic))
            ]
            trees[name] = eqx.combine(jtu.tree_unflatten(jtu.tree_structure(dynamic), leaves), static)
        for name in rows:
            count = sum(key.startswith(name + "/") for key in arrays)
            trees[name] = [arrays[f"{name}/{i}"] for i in range(count)]
        return header, trees


def program(function: Callable, *arguments: PyTree) -> str:
    """What `function` does, as text: its traced program and the constants in it.

    Two functions that differ only in a number inside a closure have different programs.
    """
    dynamic, static = eqx.partition(arguments, eqx.is_array)
    # a new function at each call, so that nothing is taken from a cache of traces
    closed = jax.make_jaxpr(lambda d: eqx.filter(function(*eqx.combine(d, static)), eqx.is_array))(dynamic)
    constants = hashlib.sha256()
    for constant in _constants(closed):
        constants.update(np.asarray(_tree.numbers(constant)).tobytes())
    return re.sub("0x[0-9a-f]+", "", str(closed.jaxpr)) + constants.hexdigest()  # without addresses


def _constants(part: Any) -> Iterator[Any]:
    """The arrays in a traced program, and in all programs that it calls, whose text doesn't show them."""
    if isinstance(part, ClosedJaxpr):
        yield from (constant for constant in part.consts if hasattr(constant, "dtype"))
        part = part.jaxpr
    is_program = lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
    for equation in part.eqns:
        for inner in filter(is_program, jtu.tree_leaves(equation.params, is_leaf=is_program)):
            yield from _constants(inner)
