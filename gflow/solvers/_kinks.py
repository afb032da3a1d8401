"""Whether a function has kinks, as ReLU networks have, read off its program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import PyTree

# A maximum along an axis is not among them: it belongs to every stable softmax, which is smooth.
_KINKED = {"max", "min", "abs", "sign", "clamp", "reduce_window_max", "reduce_window_min"}
_COMPARISONS = {"gt", "ge", "lt", "le"}
_SHAPING = {"convert_element_type", "broadcast_in_dim", "reshape"}
# smooth, although computed by way of max, |·| or a choice
_VARIANCES = {"_var", "_std"}
_SMOOTH = {"logaddexp", "softplus", "log_sigmoid"} | _VARIANCES


def has_kinks(function: Callable[[PyTree], Any], at: PyTree) -> bool:
    """Whether the program of `function(at)` has max, min, |·|, or a choice by comparing floats in it.

    A choice is a `where`, or a product with the comparison as a number. A smooth function that is put
    together with their help, such as an ELU, is taken for one with kinks. Those of a maximum along an axis,
    of a sort, of a branch and of gates with more detours are not found. What doesn't depend on `at`, such as
    masks of data, makes no kink.
    """
    program = jax.make_jaxpr(function)(at).jaxpr
    return _kinked(program, frozenset(range(len(program.invars))), frozenset())


def _kinked(program: core.Jaxpr, moving: frozenset[int], compared: frozenset[int]) -> bool:
    """Positions of arguments that depend on those of the function, and that result from comparing floats."""
    choosers, positive = {program.invars[i] for i in compared}, set()
    depending = {program.invars[i] for i in moving}
    for equation in program.eqns:
        name = equation.primitive.name
        inputs = equation.invars
        moved = frozenset(i for i, variable in enumerate(inputs) if _is_in(variable, depending))
        if not moved:  # masks and weights of the data
            continue
        depending |= set(equation.outvars)
        if name in _COMPARISONS and _is_float(inputs[0]):
            choosers |= set(equation.outvars)
        elif name == "select_n" and _is_float(equation.outvars[0]) and _is_in(inputs[0], choosers):
            return True
        elif name == "mul" and any(_is_in(variable, choosers) for variable in inputs):
            return True
        elif name in _KINKED and _is_float(equation.outvars[0]):
            # log|x| has a pole and no kink, a maximum along an axis starts from -∞, and a variance, which
            # normalising layers keep from rounding to less than 0, is none
            into_log = all(user == "log" for user in _users(program, equation.outvars[0]))
            harmless = into_log or any(map(_is_bottom, inputs)) or any(_is_in(v, positive) for v in inputs)
            if not harmless:
                return True
        elif _called(equation) in _VARIANCES:
            positive |= set(equation.outvars)
        elif _called(equation) not in _SMOOTH:
            passed = frozenset(i for i, variable in enumerate(inputs) if _is_in(variable, choosers))
            for inner in map(_program, jax.tree.leaves(list(equation.params.values()))):
                if inner is None:
                    continue
                known = moved, passed
                if len(inner.invars) != len(inputs):  # loops and branches order them in their own way
                    known = frozenset(range(len(inner.invars))), frozenset()
                if _kinked(inner, *known):
                    return True
            # a comparison that is only broadcast, negated or made a number still chooses
            if passed and (name in _SHAPING or not _is_float(equation.outvars[0])):
                choosers |= set(equation.outvars)
    return False


def _called(equation: Any) -> str:
    """The name of the function that an equation calls."""
    if "name" in equation.params:
        return str(equation.params["name"])
    program = _program(equation.params.get("call_jaxpr"))  # of a function with a derivative of its own
    return "" if program is None else str(program.debug_info.func_src_info).partition(" ")[0]


def _users(program: core.Jaxpr, variable: Any) -> list[str]:
    """What the variable goes into."""
    users = [e.primitive.name for e in program.eqns if any(variable is other for other in e.invars)]
    return users + ["the result"] * any(variable is other for other in program.outvars)


def _program(parameter: Any) -> core.Jaxpr | None:
    if isinstance(parameter, core.ClosedJaxpr):
        return parameter.jaxpr
    return parameter if isinstance(parameter, core.Jaxpr) else None


def _is_float(variable: Any) -> bool:
    return jnp.issubdtype(getattr(variable.aval, "dtype", np.int32), jnp.floating)


def _is_in(variable: Any, variables: set[Any]) -> bool:
    return not isinstance(variable, core.Literal) and variable in variables


def _is_bottom(variable: Any) -> bool:
    """-∞, from where a maximum along an axis starts."""
    return isinstance(variable, core.Literal) and np.array_equal(variable.val, -np.inf)
