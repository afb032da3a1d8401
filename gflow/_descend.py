"""Descent with a finite step: what an optimiser really does."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from gflow._descent_path import BUFFER, BUFFER_OF_MANY, DescentPath
from gflow._ensemble import EnsembleRun
from gflow._members import split
from gflow._numbers import Real, count, is_number, positive, refuse_traced
from gflow._problem import Problem
from gflow._stepper import Run
from gflow._trajectory import Trajectory
from gflow._watch import Watch
from gflow.observe import AbstractObservable, as_observables
from gflow.stability import AbstractOptimizer, GradientDescent
from gflow.stop import AbstractStop


def descend(
    model: Callable | PyTree,
    data: PyTree,
    optimizer: Real | optax.GradientTransformation | AbstractOptimizer,
    steps: int,
    *,
    learning_rate: Real | None = None,
    loss: Callable | None = None,
    trainable: PyTree | Callable[[Any], bool] | None = None,
    minibatch: int | None = None,
    replace: bool = False,
    save_every: int | None = None,
    save_models: bool = False,
    ensemble: bool = False,
    observe: Sequence[AbstractObservable] | Mapping[str, Callable | AbstractObservable] = (),
    stop: AbstractStop | Sequence[AbstractStop] | None = None,
    chunk_size: int | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike | None = None,
    throw: bool = True,
    key: Key[Array, ""] | None = None,
) -> Trajectory:
    """Descends with finite steps: θ ← θ − η ∇L(θ), or any optax optimiser.

    **Arguments:**

    - `model`, `data`, `loss`, `trainable`, `chunk_size`: as for [`gflow.Problem`][].
    - `optimizer`: the learning rate η of plain gradient descent, one of [`gflow.stability`][], or any
        optax transformation. One that needs the loss (a line search, Polyak's step) gets it; the
        evaluations of a line search are not counted.
    - `steps`: how many steps to make.
    - `learning_rate`: what a step of an optax transformation is worth in flow time, t = learning_rate · k;
        by default t = k. For plain gradient descent it is η, and for [`gflow.stability.Polyak`][] and
        `Nesterov` η/(1 − β).
    - `minibatch`: the number of examples per step of stochastic descent; by default all of them. A
        step takes the loss of these alone, which is the one to follow on average if it is a mean over
        examples. Records and stop conditions are always on all data, stop conditions only where a record is
        due.
    - `replace`: whether mini-batches are drawn with replacement, independently at each step; by default
        they run through one random permutation of the data after another (what is left over when
        `minibatch` doesn't divide the number of examples is left out of that epoch).
    - `save_every`: record every so many steps, and after the last one; by default about a hundred
        times.
    - `save_models`, `observe`, `stop`, `progress`, `checkpoint`, `throw`: as for [`gflow.integrate`][].
    - `ensemble`: whether `model` holds many members at once, along a leading axis of every trainable leaf, as
        for [`gflow.integrate`][]. All of them see the same mini-batches.
    - `key`: a JAX random key for the mini-batches.

    **Returns:** a [`gflow.Trajectory`][], which also has `step_loss`, the loss at every step.

    **Raises:** `ValueError` for arguments that make no sense, [`gflow.FlowError`][] (carrying the partial
    trajectory) if the run fails: "diverged" or "nonfinite". Ctrl-C returns the partial trajectory with
    status "interrupted".
    """
    rates = dict(optimizer=optimizer, learning_rate=learning_rate)
    refuse_traced("descend", model=model, data=data, loss=loss, **rates)
    if ensemble:
        problem, members = split(model, data, loss, trainable=trainable, chunk_size=chunk_size)
    else:
        problem, members = Problem(model, data, loss, trainable=trainable, chunk_size=chunk_size), None
    run = descent_run(
        problem,
        optimizer,
        steps,
        learning_rate=learning_rate,
        minibatch=minibatch,
        replace=replace,
        save_every=save_every,
        save_models=save_models,
        observe=observe,
        stop=stop,
        progress=progress,
        checkpoint=checkpoint,
        key=key,
        buffer=BUFFER if members is None else BUFFER_OF_MANY,
    )
    return (run if members is None else EnsembleRun(run, members)).complete().trajectory(throw)


def descent_run(
    problem: Problem,
    optimizer: Real | optax.GradientTransformation | AbstractOptimizer,
    steps: int,
    *,
    learning_rate: Real | None = None,
    minibatch: int | None = None,
    replace: bool = False,
    save_every: int | None = None,
    save_models: bool = False,
    observe: Any = (),
    stop: Any = None,
    progress: bool = False,
    checkpoint: str | os.PathLike | None = None,
    key: Key[Array, ""] | None = None,
    buffer: int = BUFFER,
) -> Run:
    """The arguments of `descend`, checked, as a run that has not begun."""
    dtype = problem.dtype
    steps = count("steps", steps)
    if callable(optimizer) or hasattr(optimizer, "gradient_transformation"):
        raise ValueError(
            f"optimizer must be a learning rate or an optax transformation, but {optimizer!r} came; call "
            "what makes one, as in optax.sgd(schedule), or take MultiSteps(...).gradient_transformation()."
        )
    if not isinstance(optimizer, (optax.GradientTransformation, AbstractOptimizer)):
        optimizer = GradientDescent(
            positive("optimizer", optimizer, "learning rate (or an optax transformation)", dtype)
        )
    # as arrays, so that another number is not another program
    as_array = lambda x: jnp.asarray(x, dtype) if is_number(x) else x
    transformation = jax.tree.map(as_array, optimizer)
    rate = None if learning_rate is None else positive("learning_rate", learning_rate, "learning rate", dtype)
    own = optimizer.step_time if isinstance(optimizer, AbstractOptimizer) else None
    if own is not None:
        if rate is not None and not math.isclose(rate, own, rel_tol=1e-4):  # 1 − β in single precision
            raise ValueError(
                f"learning_rate must be the time that a step of {type(optimizer).__name__} is worth, "
                f"{own:.6g} (with momentum, η/(1 − β)), but {learning_rate!r} came; give that, or pass "
                "another optimizer."
            )
    rate = (own or 1.0) if rate is None else rate
    if minibatch is None and (replace or key is not None):
        given = "replace=True" if replace else "key"
        raise ValueError(
            f"minibatch must be given with {given}, which is about mini-batches, but is None; say how many "
            "examples a step takes, or leave both out."
        )
    if minibatch is not None:
        minibatch = count("minibatch", minibatch)
        if minibatch > problem.examples:
            raise ValueError(
                f"minibatch must be at most the number of examples, {problem.examples}, but "
                f"{minibatch} came; leave it out for full-batch descent."
            )
        if key is None:
            raise ValueError(
                "key must be given with minibatch, as the randomness of the mini-batches; for example "
                "key=jax.random.key(0)."
            )
    if key is not None and not (isinstance(key, jax.Array) and (key.dtype == "uint32" or key.ndim == 0)):
        raise ValueError(f"key must be a JAX random key, such as jax.random.key(0), but {key!r} came.")
    save_every = math.ceil(steps / 100) if save_every is None else count("save_every", save_every)
    observables = as_observables(observe)
    path = DescentPath(
        problem=problem,
        watch=Watch(stop, observables, problem.dtype),
        optimizer=transformation,
        minibatch=minibatch,
        replace=bool(replace),
        check_every=jnp.asarray(1 if minibatch is None else save_every),
        key=jax.random.key(0) if key is None else key,
        buffer=buffer,
    )
    positions = np.append(np.arange(0, steps, save_every), steps)
    return Run(
        path,
        positions.tolist(),
        time=lambda step: rate * step,
        times=(rate * positions).tolist(),
        end=steps,
        observables=observables,
        save_models=save_models,
        max_steps=steps,
        progress=progress,
        checkpoint=checkpoint,
    )
