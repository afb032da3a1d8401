"""Flow and descent on one clock."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from gflow import _tree
from gflow._descend import descent_run
from gflow._integrate import flow_run
from gflow._numbers import Real, count, is_number, positive, refuse_traced
from gflow._problem import Problem
from gflow._trajectory import FlowError, Trajectory
from gflow.observe import (
    AbstractObservable,
    AbstractStepObservable,
    PreconditionedSharpness,
    Sharpness,
    as_observables,
)
from gflow.stability import AbstractOptimizer, Edge, GradientDescent
from gflow.stability._edge import statistics


class Comparison(eqx.Module):
    """Gradient flow and a descent from the same start, recorded at the same times t = ηk.

    **Attributes:**

    - `flow`, `descent`: the two [`gflow.Trajectory`][]s, with `sharpness` among their records.
    - `step`: the step number k of each record.
    - `distance`: ‖θ_descent − θ_flow‖ / ‖θ_flow − θ(0)‖ at each record, 0 at the start. It ends with the
        last time that both have reached.
    - `learning_rate`: η.
    - `threshold`: the sharpness above which the descent is linearly unstable, 2/η for plain gradient
        descent; an array with one for each record if the learning rate follows a schedule; `None` where
        it isn't known for the optimiser.
    - `quantity`: the record of the descent that the threshold is for, `"sharpness"` or, for RMSProp and
        Adam, `"preconditioned_sharpness"`.
    - `edge`: where that record crosses the threshold, where the loss then begins to rise, and the
        statistics after that, as [`gflow.stability.Edge`][]. `crossing` and `onset` are the first two.
        Without a threshold they raise `ValueError`, because `None` would read as "never".
    """

    flow: Trajectory
    descent: Trajectory
    step: np.ndarray
    distance: Float[np.ndarray, " records"]
    learning_rate: float
    threshold: float | Float[np.ndarray, " records"] | None
    quantity: str = eqx.field(static=True)

    @property
    def edge(self) -> Edge:
        """Statistics of the descent at the edge of stability; `ValueError` where no threshold is known."""
        if self.threshold is None:
            raise ValueError(
                "optimizer has no threshold on the sharpness that gflow knows, so that a crossing "
                "has no meaning; pass one of gflow.stability, such as Polyak(0.1, 0.9), or "
                "gflow.stability.Custom(optimizer, limit)."
            )
        path = self.descent
        assert path.step_loss is not None  # every descent has them
        return statistics(self.step, path.records, path.step_loss, path[self.quantity], self.threshold)

    @property
    def crossing(self) -> int | None:
        """First recorded step with `quantity` > threshold, `None` if never; raises as `edge` does."""
        return self.edge.crossing

    @property
    def onset(self) -> int | None:
        """First step k from the crossing on with L(θ_k) > L(θ_{k−1}), `None` if never; raises as `edge`."""
        return self.edge.onset

    def __repr__(self) -> str:
        def step(value):
            return "never" if value is None else f"step {value} (t = {value * self.learning_rate:.6g})"

        lines = [f"Comparison at learning rate {self.learning_rate:.6g}"]
        if self.threshold is None:
            lines.append("  threshold not known")
        else:
            low, high = np.min(self.threshold), np.max(self.threshold)
            shown = f"{low:.6g} to {high:.6g}" if low < high else f"{low:.6g}"
            lines += [
                f"  threshold {shown}" + " (preconditioned)" * (self.quantity != "sharpness"),
                f"  crossing  {step(self.crossing)}",
                f"  onset     {step(self.onset)}",
            ]
        if len(self.distance):
            lines.append(f"  distance  {self.distance[-1]:.4g} of the flow's displacement at the end")
        for name, path in (("flow", self.flow), ("descent", self.descent)):
            lines += [f"  {name}:", *("    " + line for line in repr(path).splitlines())]
        return "\n".join(lines)


def compare(
    model: Callable | PyTree,
    data: PyTree,
    *,
    learning_rate: Real,
    t_max: Real,
    optimizer: Real | optax.GradientTransformation | AbstractOptimizer | None = None,
    loss: Callable | None = None,
    trainable: PyTree | Callable[[Any], bool] | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: Real = 1e-4,
    atol: Real = 1e-7,
    save_every: int | None = None,
    observe: Sequence[AbstractObservable] | Mapping[str, Callable | AbstractObservable] = (),
    chunk_size: int | None = None,
    progress: bool = False,
    throw: bool = True,
) -> Comparison:
    """Runs gradient flow and descent side by side, recorded at the same times t = ηk.

    The two are driven in turn, so that no more than one set of parameters of each is in memory.

    **Arguments:**

    - `model`, `data`, `loss`, `trainable`, `chunk_size`: as for [`gflow.Problem`][].
    - `learning_rate`: η.
    - `t_max`: the horizon; the descent makes ⌊t_max/η⌋ steps, and the flow ends at η times as many.
    - `optimizer`: an optax transformation, or one of [`gflow.stability`][] whose threshold is known, whose
        step is worth `learning_rate` in time; by default plain gradient descent. With momentum β and
        learning rate η a step is worth η/(1 − β): on another clock the two would part for that alone, which
        is refused where η is a number and no schedule.
    - `solver`, `rtol`, `atol`: of the flow, as for [`gflow.integrate`][].
    - `save_every`: record every so many steps; by default every step, or about 500 records if there are
        more steps.
    - `observe`: what to record besides loss, gradient norm and sharpness, and of a descent with RMSProp or
        Adam the preconditioned sharpness. What belongs to steps is recorded of the descent alone.
    - `progress`, `throw`: as for [`gflow.integrate`][].

    **Returns:** a [`gflow.Comparison`][].

    **Raises:** `ValueError` for arguments that make no sense; [`gflow.FlowError`][] if one of the two
    runs fails. The error carries that run as `trajectory`, and with `throw=False` the comparison up to
    there is returned.
    """
    refuse_traced("compare", model=model, data=data, learning_rate=learning_rate, t_max=t_max, loss=loss)
    problem = Problem(model, data, loss, trainable=trainable, chunk_size=chunk_size)
    rate = positive("learning_rate", learning_rate, "learning rate", problem.dtype)
    t_max = positive("t_max", t_max, "time", problem.dtype)
    steps = math.floor(t_max / rate * (1 + 1e-6))  # a horizon that is a multiple of η up to rounding is one
    if steps < 1:
        raise ValueError(
            f"t_max must be at least one learning rate, {rate:.6g}, but {t_max:.6g} came; there would be no "
            "step to compare."
        )
    save_every = math.ceil(steps / 500) if save_every is None else count("save_every", save_every)
    observables = as_observables(observe)
    optimizer = rate if optimizer is None else optimizer
    known = GradientDescent(optimizer) if is_number(optimizer) else optimizer
    known = known if isinstance(known, AbstractOptimizer) else None
    needed: list[AbstractObservable] = [Sharpness()]
    if known is not None and known.quantity == "preconditioned_sharpness":
        needed.append(PreconditionedSharpness())
    names = [item.name for item in observables]
    observables = (*observables, *(item for item in needed if item.name not in names))
    descent = descent_run(
        problem,
        optimizer,
        steps,
        learning_rate=rate,
        save_every=save_every,
        observe=observables,
    )
    flow = flow_run(
        problem,
        rate * steps,
        solver=solver,
        rtol=rtol,
        atol=atol,
        save_at=descent.times,
        observe=[item for item in observables if not isinstance(item, AbstractStepObservable)],
        progress=progress,
    )
    distance = []
    try:
        for there, here in zip_longest(flow, descent):
            # one that ends early is recorded there, at a time that the other doesn't have
            if there is not None and here is not None and flow.t[-1] == descent.t[-1]:
                distance.append(_distance(here, there, problem.params))
            if "interrupted" in (flow.status, descent.status):
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        for run in (flow, descent):
            if not run.status:
                run.interrupt()
    path = descent.trajectory(throw=False)
    assert path.step is not None  # a descent has steps
    result = Comparison(
        flow=flow.trajectory(throw=False),
        descent=path,
        step=path.step,
        distance=np.asarray(distance, dtype=np.float64),
        learning_rate=rate,
        threshold=None if known is None else _threshold(known, path.step),
        quantity="sharpness" if known is None else known.quantity,
    )
    for run in (result.flow, result.descent):
        if throw and not run.ok and run.status != "interrupted":
            raise FlowError(run)
    return result


def _threshold(optimizer: AbstractOptimizer, step: np.ndarray) -> float | np.ndarray:
    """The threshold, or one for each record if it changes."""
    if not optimizer.scheduled:
        return float(optimizer.threshold())
    return np.broadcast_to(np.asarray(optimizer.threshold(step), np.float64), step.shape)


@eqx.filter_jit
def _distance(here: PyTree[Array], there: PyTree[Array], start: PyTree[Array]) -> Float[Array, ""]:
    apart = _tree.norm(_tree.subtract(here, there))
    moved = _tree.norm(_tree.subtract(there, start))
    return jnp.where(apart == 0, 0, apart / moved)
