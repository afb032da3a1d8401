"""What must hold where a run starts: a finite loss with a finite gradient, the same at every evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from gflow._checkpoint import program
from gflow._numbers import refuse_traced
from gflow._problem import Problem


def check_start(
    problem: Problem, evaluate: Callable[[], Mapping[str, Array]]
) -> Float[np.ndarray, "*members"]:
    """The loss at the start; refuses a problem that is not finite there or not deterministic.

    `evaluate()` gives what a record holds there, evaluated anew at each call; of an ensemble as arrays with
    one entry per member, and `problem` is that of one of them.
    """

    def once() -> Float[np.ndarray, "2 *members"]:
        values = evaluate()
        refuse_traced("integrate or descend", loss=values)  # one that closes over what has no value
        return np.stack([np.asarray(values[name], np.float64) for name in ("loss", "gradient_norm")])

    first, second = once(), once()
    unusable = np.argwhere(~np.isfinite(first).all(axis=0))
    if len(unusable):
        loss, gradient_norm = first[(slice(None), *unusable[0])]
        what = "gradient of the loss" if np.isfinite(loss) else "loss"
        member = "".join(f" of member {i}" for i in unusable[0])
        raise ValueError(
            f"loss must be finite and differentiable where the run starts, but the {what}{member} is "
            f"{gradient_norm if np.isfinite(loss) else loss} there although parameters and data are finite; "
            "look for log, sqrt or a division at 0 in model and loss, or scale the initialisation."
        )
    same = np.allclose(first, second, rtol=1e-3, atol=1e-6 * (1 + abs(first[0])))  # GPUs sum in any order
    if not same or not _traces_alike(problem):
        worst = np.argmax(np.abs(first - second)[0])
        values = [f"{found[0].flat[worst]:.9g}" for found in (first, second)]
        raise ValueError(
            "model must be deterministic, but two evaluations of its loss and gradient at the same "
            f"parameters differ ({' and '.join(values)}, or in their random constants); "
            "switch dropout off with equinox.nn.inference_mode, and draw no random numbers in it."
        )
    return first[0, ...]


def _traces_alike(problem: Problem) -> bool:
    """Whether two traces of the loss are the same program, which they aren't if Python draws numbers."""
    arrays, static = eqx.partition(problem, eqx.is_array)
    shapes = jtu.tree_map(lambda x: (x.shape, str(x.dtype)), arrays)
    seen = (jtu.tree_structure((shapes, static)), *jtu.tree_leaves(shapes), *jtu.tree_leaves(static))
    try:
        if seen in _ALIKE:
            return True
    except TypeError:  # something in it can't be hashed: trace it each time
        seen = None
    alike = len({program(Problem.value, problem, problem.params) for _ in range(2)}) == 1
    if alike and seen is not None and len(_ALIKE) < 256:
        _ALIKE.add(seen)
    return alike


_ALIKE: set[Any] = set()  # problems by their functions and shapes; tracing takes longer than a short run
