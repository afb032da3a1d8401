"""Stop conditions, made ready to be watched inside a compiled loop."""

from collections.abc import Iterable, Mapping, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from gflow import _tree
from gflow._problem import Problem
from gflow.observe import RESERVED, AbstractObservable
from gflow.stop import AbstractStop


class Watch(eqx.Module):
    """Stop conditions together with the observables that they name, ready to be compiled."""

    stops: tuple[AbstractStop, ...]
    levels: Float[Array, " stops"]
    observables: tuple[AbstractObservable, ...]
    _reserved: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        stop: AbstractStop | Sequence[AbstractStop] | None,
        observables: Sequence[AbstractObservable],
        dtype: np.dtype,
        reserved: Sequence[str] = RESERVED,
    ):
        stop = () if stop is None else stop
        stops = tuple(stop) if isinstance(stop, Iterable) else (stop,)
        known = {item.name: item for item in observables}
        for item in stops:
            if not isinstance(item, AbstractStop):
                raise ValueError(
                    "stop must be one or several conditions of gflow.stop, but holds a "
                    f"{type(item).__name__}; for example stop=gflow.stop.LossBelow(1e-3)."
                )
            if item.quantity not in known and item.quantity not in reserved:
                names = ", ".join((*reserved, *known))
                raise ValueError(
                    f"stop names the quantity {item.quantity!r}, which is not recorded; this run has "
                    f"{names}. Add it with observe=."
                )
        self.levels = jnp.asarray([item.level for item in stops], dtype)
        # the levels travel as an array, so that another level compiles nothing
        self.stops = tuple(eqx.tree_at(lambda s: s.level, item, None) for item in stops)
        self.observables = tuple(known[s.quantity] for s in stops if s.quantity in known)
        self._reserved = tuple(reserved)

    def __bool__(self) -> bool:
        return bool(self.stops)

    def start(
        self, problem: Problem, params: PyTree, known: Mapping[str, Array] | None = None
    ) -> tuple[Float[Array, " stops"] | None, PyTree]:
        """The side of its level on which each quantity starts (`None`: no stops), and observables' states."""
        states = tuple(item.init(problem, params) for item in self.observables)
        if not self.stops:
            return None, states
        values, states, _ = self._values(problem, params, states, known)
        sides = [
            item.side(value, level)
            for item, value, level in zip(self.stops, values, self.levels, strict=True)
        ]
        return jnp.stack(sides), states

    def holds(self, sides: Float[Array, " stops"] | None) -> Bool[Array, ""]:
        """Whether a condition holds at the start."""
        return jnp.array(False) if sides is None else jnp.any(sides == 0)

    def margins(
        self,
        problem: Problem,
        params: PyTree,
        sides: Float[Array, " stops"] | None,
        states: PyTree,
        known: Mapping[str, Array] | None = None,
    ) -> tuple[Float[Array, " stops"], PyTree, Int[Array, ""]]:
        """How far each quantity is on its side of the level (≤ 0: the condition holds).

        What is `known`, such as loss and gradient norm, is not evaluated.
        """
        assert sides is not None
        values, states, hvps = self._values(problem, params, states, known)
        return sides * (values - self.levels), states, hvps

    def gradients(self) -> int:
        """Gradients that one evaluation takes; a loss alone is counted as one as well, and log t as none."""
        return int(any(item.quantity in self._reserved and item.quantity != "log_t" for item in self.stops))

    def _values(self, problem, params, states, known: Mapping[str, Array] | None = None):
        found = dict(known or {})
        quantities = {item.quantity for item in self.stops} - set(found)
        if "gradient_norm" in quantities:
            found["loss"], gradient = problem.value_and_gradient(params)
            found["gradient_norm"] = _tree.norm(gradient)
        elif "loss" in quantities:
            found["loss"] = problem.value(params)
        hvps = jnp.array(0)
        new_states = []
        for item, state in zip(self.observables, states, strict=True):
            reading = item.read(problem, params, state)
            found[item.name] = reading.values[item.name]
            if found[item.name].shape != ():
                raise ValueError(
                    f"stop names {item.name!r}, which has shape {found[item.name].shape}, but only a "
                    "scalar can cross a level; observe the entry that is meant on its own."
                )
            new_states.append(reading.state)
            hvps += reading.hvps
        values = [found[item.quantity].astype(self.levels.dtype) for item in self.stops]
        return jnp.stack(values), tuple(new_states), hvps
