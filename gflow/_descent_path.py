"""Descent as a path: steps of an optax optimiser in one compiled loop."""

import contextlib
import inspect

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from gflow import _tree
from gflow._errors import in_a_line
from gflow._path import (
    DIVERGED,
    NONFINITE,
    RUNNING,
    STOPPED,
    AbstractPath,
    Position,
)
from gflow._problem import Problem
from gflow._watch import Watch
from gflow.losses import AbstractExponentialTail
from gflow.observe import Step
from gflow.stability import AbstractOptimizer

# Losses of so many steps leave the compiled loop at once; of each member of an ensemble fewer.
BUFFER, BUFFER_OF_MANY = 4096, 64
# A loss this many times its start (and 1) is called divergence before it overflows.
_RUNAWAY = 1e6


@contextlib.contextmanager
def _sentence():
    """One sentence on whatever an optimiser raises that asks for more than there is."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            "optimizer must be an optax transformation that needs no more than gradient, loss and "
            f"parameters, but raised {in_a_line(error)}"
        ) from error


class DescentState(eqx.Module):
    """Everything a descent needs to go on: parameters, and the gradient for the next step."""

    step: Int[Array, ""]
    params: PyTree[Array]
    optimizer_state: PyTree
    loss: Float[Array, ""]
    gradient: PyTree[Array]
    gradient_norm: Float[Array, ""]  # as it was when the last `advance` ended
    order: Int[Array, " examples"] | None
    scale: Float[Array, ""]
    losses: Float[Array, " buffer"]
    filled: Int[Array, ""]
    code: Int[Array, ""]
    sides: Float[Array, " stops"] | None  # None: nothing can stop it
    watched: PyTree
    watch_hvps: Int[Array, ""]


class DescentPath(AbstractPath):
    """Steps of an optimiser as a path: positions are step numbers."""

    problem: Problem
    watch: Watch
    optimizer: optax.GradientTransformation | AbstractOptimizer
    minibatch: int | None = eqx.field(static=True)
    replace: bool = eqx.field(static=True)
    check_every: Int[Array, ""]
    key: Key[Array, ""]
    buffer: int = eqx.field(static=True, default=BUFFER)

    @eqx.filter_jit
    def start(self):
        """Nothing done yet, except the first gradient."""
        params = self.problem.params
        zero = jnp.array(0)
        order = None if self.minibatch is None or self.replace else self._shuffle(zero)
        loss, gradient = self._batch(zero, order).value_and_gradient(params)
        sides, watched = self.watch.start(self.problem, params)
        with _sentence():
            optimizer_state = self._transformation().init(params)
        state = DescentState(
            step=zero,
            params=params,
            optimizer_state=optimizer_state,
            loss=loss,
            gradient=gradient,
            gradient_norm=_tree.norm(gradient),
            order=order,
            scale=loss,
            losses=jnp.zeros(self.buffer, loss.dtype).at[0].set(loss),
            filled=jnp.array(1),
            code=jnp.where(self.watch.holds(sides), STOPPED, RUNNING),
            sides=sides,
            watched=watched,
            watch_hvps=zero,
        )
        return _tree.as_arrays(state)

    def advance(self, state, until, budget):
        """A step that must be refused ends the loop, which is then run anew up to the step before.

        To choose between the old state and the new one in every step would cost a small problem a tenth of
        its time, and more with the moments of Adam.
        """
        opened, limit = self.opened(state, budget)
        begins = opened.code == RUNNING

        def attempt(now):
            last = now[0]
            going_on = lambda now: self.going_on(now, until, last)
            after = _tree.while_loop(going_on, lambda now: self.step(now, True), opened)
            refused = begins & (after.code == NONFINITE)
            return jnp.where(refused, after.step - 1, last), after, refused

        last, after, _ = _tree.while_loop(lambda now: now[2], attempt, (limit, opened, jnp.array(True)))
        code = jnp.where(last < limit, NONFINITE, after.code)
        return self.closed(eqx.tree_at(lambda s: s.code, after, code))

    def opened(self, state, budget):
        """With an empty buffer, and no more steps than it takes."""
        state = eqx.tree_at(lambda s: s.filled, state, jnp.zeros_like(state.filled))
        return state, state.step + jnp.minimum(budget, self.buffer)

    def going_on(self, state, until, limit):
        """Before `until`, and nothing has ended the run."""
        return (state.code == RUNNING) & (state.step < until) & (state.step < limit)

    def closed(self, state):
        """With the gradient at the parameters, which the loop leaves as it was refused, and its norm."""
        refused = state.code == NONFINITE
        gradient = jax.lax.cond(
            eqxi.unvmap_any(refused),  # of all members or none: a choice for each would copy the data
            lambda: self._batch(state.step, state.order).gradient(state.params),
            lambda: state.gradient,
        )
        known = lambda s: (s.gradient, s.gradient_norm)
        return eqx.tree_at(known, state, (gradient, _tree.norm(gradient)))

    def step(self, now, go):
        """θ ← θ + update(∇L(θ)), then loss and gradient there; nothing non-finite is accepted."""
        params, optimizer_state = self._propose(now)
        step = now.step + 1
        if go is not True:  # what waits is evaluated once more where it is, and so keeps its gradient
            params, step = _tree.where(go, (params, step), (now.params, now.step))
        order = now.order
        if self.minibatch is not None and not self.replace:
            first = step % (self.problem.examples // self.minibatch) == 0
            order = jax.lax.cond(first, lambda: self._shuffle(step), lambda: now.order)
        loss, gradient = self._batch(step, order).value_and_gradient(params)
        finite = jnp.isfinite(loss) & _tree.all_finite(gradient, params)
        accept = finite & go
        code = jnp.where(finite, RUNNING, NONFINITE)
        watched, watch_hvps = now.watched, now.watch_hvps
        if self.watch:
            known = {}
            if self.minibatch is None:
                known = {"loss": loss, "gradient_norm": _tree.norm(gradient)}
            margins, watched, hvps = jax.lax.cond(
                accept & (step % self.check_every == 0),
                lambda: self.watch.margins(self.problem, params, now.sides, now.watched, known),
                lambda: (jnp.ones_like(now.sides), now.watched, jnp.array(0)),
            )
            code = jnp.where((code == RUNNING) & jnp.any(jnp.isnan(margins)), NONFINITE, code)
            code = jnp.where((code == RUNNING) & jnp.any(margins <= 0), STOPPED, code)
            watch_hvps += hvps
        if go is not True:
            made = (step, params, optimizer_state, loss, order)
            before = (now.step, now.params, now.optimizer_state, now.loss, now.order)
            # the gradient is not among them: choosing it too would double the cost of a small step
            step, params, optimizer_state, loss, order = _tree.where(accept, made, before)
        runaway = loss > _RUNAWAY * jnp.maximum(jnp.abs(now.scale), 1)
        code = jnp.where((code == RUNNING) & runaway, DIVERGED, code)
        slot = now.filled
        if go is not True:
            code = jnp.where(go, code, now.code)
            slot = jnp.where(go, slot, self.buffer)  # which is outside, and not written
        return DescentState(
            step=step,
            params=params,
            optimizer_state=optimizer_state,
            loss=loss,
            gradient=gradient,
            gradient_norm=now.gradient_norm,
            order=order,
            scale=now.scale,
            losses=now.losses.at[slot].set(loss),
            filled=now.filled + jnp.where(accept, 1, 0),
            code=code,
            sides=now.sides,
            watched=watched,
            watch_hvps=watch_hvps,
        )

    def _propose(self, now: DescentState) -> tuple[PyTree[Array], PyTree]:
        """The parameters after one more update, and the optimiser's state."""
        batch = self._batch(now.step, now.order)
        update = self._transformation().update
        offered = dict(value=now.loss, grad=now.gradient, value_fn=batch.value)
        takes = inspect.signature(update).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes):
            names = {parameter.name for parameter in takes}
            offered = {name: value for name, value in offered.items() if name in names}
        with _sentence():
            updates, optimizer_state = update(now.gradient, now.optimizer_state, now.params, **offered)
        return optax.apply_updates(now.params, updates), optimizer_state

    def _transformation(self) -> optax.GradientTransformation:
        if isinstance(self.optimizer, AbstractOptimizer):
            # built here, so that another η is another number and not another program
            return self.optimizer.transformation()
        return self.optimizer

    def _shuffle(self, step: Int[Array, ""]) -> Int[Array, " examples"]:
        return jax.random.permutation(jax.random.fold_in(self.key, step), self.problem.examples)

    def _batch(self, step: Int[Array, ""], order: Int[Array, " examples"] | None) -> Problem:
        """The problem on the examples of this step."""
        if self.minibatch is None:
            return self.problem
        n = self.problem.examples
        if self.replace:
            key = jax.random.fold_in(self.key, step)
            chosen = jax.random.randint(key, (self.minibatch,), 0, n)
        else:
            assert order is not None
            start = step % (n // self.minibatch) * self.minibatch
            chosen = jax.lax.dynamic_slice_in_dim(order, start, self.minibatch)
        batch = jtu.tree_map(lambda x: x[chosen], self.problem.data)
        return eqx.tree_at(lambda p: p.data, self.problem, batch, is_leaf=lambda x: x is None)

    def where(self, state):
        """The number of steps made."""
        return Position(state.step, state.step, state.code)

    def locate(self, state):
        """At the last step, where the condition was found to hold."""
        margins, hvps = self._margins(state)
        return int(state.step), int(np.argmin(margins)), self.watch.gradients(), int(hvps)

    @eqx.filter_jit
    def _margins(self, state):
        margins, _, hvps = self.watch.margins(self.problem, state.params, state.sides, state.watched)
        return margins, hvps

    def evaluate(self, state, position):
        """On all data."""
        del position
        loss, gradient = self.problem.value_and_gradient(state.params)
        return state.params, {"loss": loss, "gradient_norm": _tree.norm(gradient)}

    def known(self, state):
        """From the step itself, except for mini-batches."""
        if self.minibatch is None:
            return state.params, {"loss": state.loss, "gradient_norm": state.gradient_norm}

    @eqx.filter_jit
    def next_step(self, state):
        """The update by the gradient that is known, and what it divides the gradient by."""
        after, optimizer_state = self._propose(state)
        preconditioner = None
        if isinstance(self.optimizer, AbstractOptimizer):
            preconditioner = self.optimizer.preconditioner(optimizer_state)
        return Step(state.params, after, preconditioner)

    def shown(self, state):
        """The step number."""
        return {"step": str(int(state.step))}

    def step_losses(self, state):
        """One loss per step, starting with step 0."""
        return state.losses, state.filled

    def doubts(self, start, state, losses):
        """A descent that ends above its start, or whose gradient underflows."""
        del start
        if losses[-1] > losses[0] and self.minibatch is None:
            return [
                f"the loss ended at {losses[-1]:.3g}, above its start at {losses[0]:.3g}: the learning rate "
                "may be too large for this problem"
            ]
        loss, still = self.problem.loss, not any(map(np.any, jtu.tree_leaves(state.gradient)))
        if still and isinstance(loss, AbstractExponentialTail) and losses[-1] < 1e-19 * losses[0]:
            return [
                f"the gradient underflowed to 0 in {self.problem.dtype}, where the descent stood still; pass "
                f"the logarithm of the loss, loss=gflow.losses.Log({loss!r})"
            ]
        return []

    def explain(self, state, code, initial_loss):
        """Tells divergence from a loss that turns NaN."""
        step, loss = int(state.step), float(state.loss)
        attempt, _ = eqx.filter_jit(DescentPath._propose)(self, state)
        start, there = (float(_tree.norm(p)) for p in (self.problem.params, attempt))
        if code == DIVERGED or loss - initial_loss > 10 * abs(initial_loss) or not there < 1e3 * (1 + start):
            return "diverged", (
                f"the descent diverged: at step {step} the loss was {loss:.3g}, after {initial_loss:.3g} "
                "at the start, and the next step leads further away; use a smaller learning rate"
            )
        return "nonfinite", (
            f"loss, gradient or a watched quantity became NaN or infinite at step {step + 1}; the last "
            "finite state is kept. Look for log, sqrt or a division at 0 in model and loss"
        )

    def stats(self, state):
        """One gradient per step, and the one that the next step would use."""
        steps = int(state.step)
        full = self.minibatch is None
        checks = steps // int(self.check_every) + 1
        known = isinstance(self.optimizer, AbstractOptimizer)
        name = type(self.optimizer).__name__ if known else "optax transformation"
        return {
            "solver": "gradient descent" if name == "GradientDescent" else name,
            "steps": steps,
            "rejected": 0,
            "gradients": steps + 1 + (0 if full else self.watch.gradients() * checks),
            "hvps": int(state.watch_hvps),
        }
