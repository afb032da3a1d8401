"""Observables: what is recorded along a path, besides the loss and the gradient norm."""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PyTree

from gflow import _tree, curvature
from gflow._errors import in_a_line
from gflow._problem import Problem

__all__ = [
    "AbstractObservable",
    "AbstractStepObservable",
    "Conserved",
    "ConservedSign",
    "Function",
    "Oscillation",
    "PreconditionedSharpness",
    "Reading",
    "Sharpness",
    "Step",
]


class Reading(NamedTuple):
    """What an observable saw: named arrays, its state for the next record, and the HVPs spent.

    Where `trusted` is False, the values didn't reach the accuracy that was asked for, or show that the path
    can't be right; the trajectory then carries a warning, the name of the observable followed by `doubt`.
    """

    values: dict[str, Array]
    state: PyTree
    hvps: Int[Array, ""]
    trusted: Bool[Array, ""] | bool = True
    doubt: str = "did not reach its accuracy; give its observable a larger budget or a looser tolerance"


class AbstractObservable(eqx.Module):
    """Something recorded along a path. It may carry a state from one record to the next.

    To define one, subclass it and implement `name`, `init` and `read`; both methods are compiled. A
    plain function `(model, data) -> array` needs no subclass: pass it in a dictionary to `observe=`.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The key under which the trajectory keeps it."""

    @abc.abstractmethod
    def init(self, problem: Problem, params: PyTree[Array]) -> PyTree:
        """The state before the first record."""

    @abc.abstractmethod
    def read(self, problem: Problem, params: PyTree[Array], state: PyTree) -> Reading:
        """Observes the parameters `params`."""


class Function(AbstractObservable):
    """A function `(model, data) -> array`, recorded under the name `label`; without state."""

    label: str = eqx.field(static=True)
    function: Callable[[Any, Any], Array]

    @property
    def name(self):
        """`label`."""
        return self.label

    def init(self, problem, params):
        """No state."""
        del problem, params
        return None

    def read(self, problem, params, state):
        """{label: function(model, data)}."""
        value = _value(self, problem, params)
        if not eqx.is_array_like(value):
            raise ValueError(
                f"observe[{self.label!r}] must return one array, but returned {type(value).__name__}; give "
                "each quantity a name and a function of its own."
            )
        return Reading({self.label: jnp.asarray(value)}, state, jnp.array(0))


class Sharpness(AbstractObservable):
    """Sharpness: the k largest eigenvalues (algebraically) of the Hessian ∇²L(θ).

    Tracked from record to record by [`gflow.curvature.follow`][]: a few Hessian-vector products where
    the path is smooth, more where its eigenvectors turn, until the estimate of the error says so.

    **Arguments:**

    - `k`: how many eigenvalues. The record is a scalar for k = 1 and has shape (k,), in descending
        order, otherwise.
    - `rtol`: the relative error of the eigenvalues, as estimated from residual and gap; by default 1e-6 in
        float64 and 1e-5 in float32.
    - `max_hvps`: the most Hessian-vector products for one record; by default 1000 + 100 k.

    Records `sharpness`; `sharpness_residual`, the residual ‖Hv − λv‖ that was reached; and
    `sharpness_hvps`, the Hessian-vector products that the record took.
    """

    k: int = eqx.field(static=True, default=1)
    rtol: float | Float[Array, ""] | None = None
    max_hvps: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k must be a positive number of eigenvalues, but {self.k!r} came.")
        if isinstance(self.rtol, (int, float)) and not 0 < self.rtol < 1:
            raise ValueError(f"rtol must lie between 0 and 1, but {self.rtol!r} came.")
        if self.max_hvps is not None and (not isinstance(self.max_hvps, int) or self.max_hvps < 1):
            raise ValueError(f"max_hvps must be a positive number of products, but {self.max_hvps!r} came.")

    @property
    def name(self):
        """`"sharpness"`."""
        return "sharpness"

    def init(self, problem, params):
        """A track that has seen nothing yet."""
        del params
        return curvature.start_track(problem, self.k)

    def read(self, problem, params, state):
        """The eigenvalues, from those of the last records."""
        return self.read_operator(curvature.hessian(problem, params), params, state)

    def read_operator(self, operator: lx.AbstractLinearOperator, params: PyTree, state: PyTree) -> Reading:
        """The eigenvalues of another curvature at `params`, recorded under the same names."""
        pairs, track = curvature.follow(
            operator, params, state, self.k, rtol=self.rtol, max_hvps=self.max_hvps
        )
        squeeze = (lambda x: x[0]) if self.k == 1 else (lambda x: x)
        values = {
            "sharpness": squeeze(pairs.values),
            "sharpness_residual": squeeze(pairs.residuals),
            "sharpness_hvps": pairs.hvps,
        }
        return Reading(values, track, pairs.hvps, pairs.converged)


class Step(NamedTuple):
    """A step that a descent is about to make.

    **Attributes:**

    - `params`: θ_k.
    - `after`: θ_{k+1}.
    - `preconditioner`: the diagonal P by which the step divides the gradient, like the parameters; `None`
        where it doesn't, or where gflow doesn't know.
    """

    params: PyTree[Array]
    after: PyTree[Array]
    preconditioner: PyTree[Array] | None


class AbstractStepObservable(AbstractObservable):
    """Something recorded of the steps of a descent, not only of the parameters.

    To define one, subclass it and implement `name`, `init` and `read_step`. It can be recorded by
    [`gflow.descend`][], and by [`gflow.compare`][] of its descent.
    """

    @abc.abstractmethod
    def read_step(self, problem: Problem, step: Step, state: PyTree) -> Reading:
        """Observes the step that is about to be made."""

    def read(self, problem, params, state):
        """`ValueError`, because parameters alone are no step."""
        del problem, params, state
        raise ValueError(
            f"observe records {self.name!r} of the steps of an optimiser, so that it has no meaning along a "
            "flow and can't be the quantity of a stop condition; record it with gflow.descend."
        )


class PreconditionedSharpness(AbstractStepObservable):
    """The k largest eigenvalues of P^{-1/2} ∇²L(θ) P^{-1/2}, the sharpness that an adaptive optimiser meets.

    P is the diagonal by which the next step divides the gradient, and so the optimiser must be one that has
    it, such as [`gflow.stability.Adam`][].

    **Arguments:** `k`, `rtol` and `max_hvps` as for [`gflow.observe.Sharpness`][].

    Records `preconditioned_sharpness`, and as that does `preconditioned_sharpness_residual` and
    `preconditioned_sharpness_hvps`.

    ??? cite "Reference"

        J. Cohen et al. Adaptive Gradient Methods at the Edge of Stability.
        [arXiv:2207.14484](https://arxiv.org/abs/2207.14484)
    """

    k: int = eqx.field(static=True, default=1)
    rtol: float | Float[Array, ""] | None = None
    max_hvps: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        self._sharpness()

    def _sharpness(self) -> Sharpness:
        return Sharpness(self.k, self.rtol, self.max_hvps)

    @property
    def name(self):
        """`"preconditioned_sharpness"`."""
        return "preconditioned_sharpness"

    def init(self, problem, params):
        """As that of the sharpness."""
        return self._sharpness().init(problem, params)

    def read_step(self, problem, step, state):
        """The eigenvalues of the preconditioned Hessian."""
        if step.preconditioner is None:
            raise ValueError(
                f"observe records {self.name!r}, but the optimiser has no preconditioner that gflow knows; "
                "descend with gflow.stability.Adam or RMSProp, or record gflow.observe.Sharpness()."
            )
        reading = self._sharpness().read_operator(_curvature(problem, step.params, step), step.params, state)
        values = {f"preconditioned_{name}": value for name, value in reading.values.items()}
        return reading._replace(values=values)


class Oscillation(AbstractStepObservable):
    """The oscillation of a descent along the top eigenvector, and what is seen midway between its iterates.

    Where the sharpness exceeds its threshold, iterates jump from one side of a valley to the other. Midway,
    at θ̄ = (θ_k + θ_{k+1})/2, the jump drops out. All is said of θ̄, with v the unit eigenvector of the largest
    eigenvalue of ∇²L(θ̄), or of P^{-1/2} ∇²L(θ̄) P^{-1/2} if the optimiser has a preconditioner P.

    **Arguments:** `rtol` and `max_hvps` as for [`gflow.observe.Sharpness`][].

    Records `oscillation`, the amplitude ½⟨v, P^{1/2}(θ_{k+1} − θ_k)⟩, with the sign of v continued from one
    record to the next; `midpoint_loss`, L(θ̄); `midpoint_sharpness`, the eigenvalue that belongs to v.
    """

    rtol: float | Float[Array, ""] | None = None
    max_hvps: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        Sharpness(rtol=self.rtol, max_hvps=self.max_hvps)

    @property
    def name(self):
        """`"oscillation"`."""
        return "oscillation"

    def init(self, problem, params):
        """A track that has seen nothing yet, and no eigenvector."""
        return curvature.start_track(problem), jax.tree.map(jnp.zeros_like, params)

    def read_step(self, problem, step, state):
        """Loss and top eigenpair midway."""
        track, last = state
        midpoint = jax.tree.map(lambda a, b: (a + b) / 2, step.params, step.after)
        half = _tree.subtract(step.after, midpoint)
        if step.preconditioner is not None:
            half = jax.tree.map(lambda p, x: jnp.sqrt(p) * x, step.preconditioner, half)
        operator = _curvature(problem, midpoint, step)
        pairs, track = curvature.follow(operator, midpoint, track, rtol=self.rtol, max_hvps=self.max_hvps)
        top = jax.tree.map(lambda v: v[0], pairs.vectors)
        sign = jnp.where(_tree.dot(top, last) < 0, -1, 1)
        top = jax.tree.map(lambda v: sign * v, top)
        values = {
            "oscillation": _tree.dot(top, half),
            "midpoint_loss": problem.value(midpoint),
            "midpoint_sharpness": pairs.values[0],
        }
        return Reading(values, (track, top), pairs.hvps, pairs.converged)


def _curvature(problem: Problem, params: PyTree[Array], step: Step) -> lx.AbstractLinearOperator:
    """∇²L(θ), or P^{-1/2} ∇²L(θ) P^{-1/2} if the step has a preconditioner."""
    operator = curvature.hessian(problem, params)
    return (
        operator if step.preconditioner is None else curvature.preconditioned(operator, step.preconditioner)
    )


def _limit(limit: Any) -> float:
    number = float(limit)
    if not 0 <= number < float("inf"):
        raise ValueError(f"limit must be a finite number of at least 0, but {limit!r} came.")
    return number


class Conserved(AbstractObservable):
    """A quantity c(θ) that gradient flow conserves, such as the balancedness of a deep linear network.

    Records the drift ‖c(θ(t)) − c(θ(0))‖ under the name `label`. If it exceeds `limit` at some record, the
    trajectory carries a warning: the steps were too long for the path, or the quantity isn't conserved.

    **Arguments:**

    - `label`: the name.
    - `function`: c, from `(model, data)` to an array or a PyTree of arrays.
    - `limit`: the largest drift that is no reason for a warning.
    """

    label: str = eqx.field(static=True)
    function: Callable[[Any, Any], PyTree[Array]]
    limit: float | Float[Array, ""] = eqx.field(converter=_limit)

    @property
    def name(self):
        """`label`."""
        return self.label

    def init(self, problem, params):
        """c(θ(0))."""
        return _value(self, problem, params)

    def read(self, problem, params, state):
        """{label: ‖c(θ) − c(θ(0))‖}."""
        drift = _tree.norm(_tree.subtract(_value(self, problem, params), state))
        doubt = "drifted beyond its limit, though the flow conserves it; use a smaller rtol and atol"
        return Reading({self.label: drift}, state, jnp.array(0), drift <= self.limit, doubt)


class ConservedSign(AbstractObservable):
    """A quantity c(θ) whose sign gradient flow conserves, such as det(AB) of balanced A and B.

    Records c under the name `label`. If at some record an entry has lost its sign, or is smaller than
    `limit`, the trajectory carries a warning: rounding may have carried, or may carry, the path over to the
    other side, where it ends elsewhere.

    **Arguments:**

    - `label`: the name.
    - `function`: c, from `(model, data)` to an array.
    - `limit`: the smallest |c| that is no reason for a warning, well above the rounding error of c.
    """

    label: str = eqx.field(static=True)
    function: Callable[[Any, Any], Array]
    limit: float | Float[Array, ""] = eqx.field(converter=_limit)

    @property
    def name(self):
        """`label`."""
        return self.label

    def init(self, problem, params):
        """The sign of c(θ(0))."""
        return jnp.sign(_value(self, problem, params))

    def read(self, problem, params, state):
        """{label: c(θ)}."""
        value = _value(self, problem, params)
        kept = jnp.all(state * value > self.limit)
        doubt = "lost its sign, or came so close to 0 that rounding may flip it, though the flow conserves it"
        return Reading({self.label: value}, state, jnp.array(0), kept, doubt)


def _value(item: "Function | Conserved | ConservedSign", problem: Problem, params: PyTree[Array]) -> Any:
    """The function of an observable at `params`, or one sentence on what it raised."""
    try:
        return item.function(problem.model(params), problem.data)
    except Exception as error:  # whatever a function of the user's own raises
        raise ValueError(
            f"observe[{item.label!r}] must be a function (model, data) -> array, in jax.numpy, but it raised "
            f"{in_a_line(error)}"
        ) from error


def as_observables(
    observe: Sequence[AbstractObservable] | Mapping[str, Callable | AbstractObservable],
) -> tuple[AbstractObservable, ...]:
    """The argument `observe` of the verbs as a tuple of observables with distinct names."""
    if isinstance(observe, Mapping):
        found = tuple(
            item if isinstance(item, AbstractObservable) else Function(name, item)
            for name, item in observe.items()
        )
    elif isinstance(observe, AbstractObservable):
        found = (observe,)
    else:
        found = tuple(observe) if isinstance(observe, Iterable) else (observe,)
    for item in found:
        if not isinstance(item, AbstractObservable):
            raise ValueError(
                "observe must be a sequence of gflow.observe objects or a dictionary from names to "
                f"functions (model, data) -> array, but holds a {type(item).__name__}; write "
                'observe={"my_name": function}.'
            )
        if isinstance(item, Function) and not callable(item.function):
            raise ValueError(
                f"observe[{item.name!r}] must be a function (model, data) -> array, but is a "
                f"{type(item.function).__name__}."
            )
    if isinstance(observe, Mapping):
        for key, item in zip(observe, found, strict=True):
            if item.name != key:
                raise ValueError(
                    f"observe[{key!r}] is a {type(item).__name__}, which is recorded as {item.name!r}; use "
                    "that as its key."
                )
    names = [item.name for item in found]
    taken = {n for n in names if names.count(n) > 1 or n in OWN}
    if taken:
        raise ValueError(
            f"observe names {sorted(taken)} more than once, or what a trajectory records anyway "
            f"({', '.join(OWN)}); give each observable its own name."
        )
    # as arrays, so that another tolerance is another number and not another program
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) else x, found)


RESERVED = ("loss", "gradient_norm")
# with the time, and what clocks other than plain time add
OWN = (*RESERVED, "t", "log_loss", "log_t")
