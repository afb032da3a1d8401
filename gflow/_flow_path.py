"""A flow as a path: diffrax's own stepping calls in one compiled loop."""

import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from gflow import _tree, curvature
from gflow._attempt import attempt, gradients
from gflow._path import (
    ASTRAY,
    NONFINITE,
    RUNNING,
    SOLVER_FAILURE,
    STOPPED,
    UNDERFLOW,
    AbstractPath,
    Position,
)
from gflow._problem import Problem
from gflow._watch import Watch
from gflow.clocks import AbstractClock
from gflow.clocks import _mark as marks
from gflow.clocks._mark import Mark
from gflow.flows import AbstractFlow, GradientFlow
from gflow.solvers import AbstractFlowSolver, Predictive

# So many rejected steps in a row that met a NaN or infinity end the run. Each divides the step by 5,
# so a step that was only far too long recovers long before.
_MAX_NONFINITE = 20


class FlowState(eqx.Module):
    """Everything a flow needs to go on, bit for bit; `dense` interpolates the last accepted step.

    `params` is θ as one vector, because what a solver computes with a PyTree is compiled leaf by leaf. `t` is
    the variable of the clock. The marks, at the two ends of that step, are `None` in plain time.
    """

    t_before: Float[Array, ""]
    t: Float[Array, ""]
    t_next: Float[Array, ""]
    params: Float[Array, " P"]
    mark_before: Mark | None
    mark: Mark | None
    dense: PyTree
    solver_state: PyTree
    controller_state: PyTree
    made_jump: Bool[Array, ""] | None  # None: the controller never makes one, and nothing is compiled for it
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    rejected_first: Int[Array, ""]  # before any was accepted
    nonfinite: Int[Array, ""]
    code: Int[Array, ""]
    result: diffrax.RESULTS
    sides: Float[Array, " stops"] | None  # None: nothing can stop it
    watched: PyTree
    watch_hvps: Int[Array, ""]


class FlowPath(AbstractPath):
    """A flow as a path: positions are readings of the clock."""

    problem: Problem
    watch: Watch
    flow: AbstractFlow
    clock: AbstractClock
    log_t0: Float[Array, ""]  # the time at which the clock starts
    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    t_max: Float[Array, ""]
    dt0: Float[Array, ""] | None
    plain: bool = eqx.field(static=True)  # the clock shows the time, so that no mark is needed
    reason: str = eqx.field(static=True)  # why this solver

    @eqx.filter_jit
    def start(self):
        """As diffrax starts: the first step size, the solver's state, nothing done yet."""
        problem, solver = self.problem, self.solver
        term, params = self._term(), _tree.vector(problem.params)
        mark, log_t = None, None
        if not self.plain:
            mark, log_t = marks.start(self.clock, self.flow, problem, self.log_t0), self.log_t0
        zero = jnp.zeros((), self.t_max.dtype)
        begun = lambda until: _tree.as_arrays(solver.init(term, zero, until, params, None))
        own = begun(self.t_max) if isinstance(solver, AbstractFlowSolver) else None
        field = solver.func
        if own is not None and isinstance(self.controller, Predictive):  # asks for it here alone
            field = lambda *_: own.f0
        t_next, controller_state = self.controller.init(
            term, zero, self.t_max, params, self.dt0, None, field, solver.error_order(term)
        )
        t_next = jnp.minimum(t_next, self.t_max)
        solver_state = begun(t_next) if own is None else own
        sides, watched = self.watch.start(problem, problem.params, self._known(problem.params, log_t))
        count = jnp.array(0)
        state = FlowState(
            t_before=zero,
            t=zero,
            t_next=t_next,
            params=params,
            mark_before=mark,
            mark=mark,
            dense=self._no_dense(params, solver_state),
            solver_state=solver_state,
            controller_state=controller_state,
            made_jump=self._no_jump(),
            steps=count,
            rejected=count,
            rejected_first=count,
            nonfinite=count,
            code=jnp.where(self.watch.holds(sides), STOPPED, RUNNING),
            result=diffrax.RESULTS.successful,
            sides=sides,
            watched=watched,
            watch_hvps=count,
        )
        return _tree.as_arrays(state)

    def entered(self, state: FlowState, solver_state: PyTree, step: float) -> FlowState:
        """What another solver has left, with a state of this one's and its first step."""
        t_next = jnp.minimum(state.t + jnp.asarray(step, state.t.dtype), self.t_max)
        term, func = self._term(), self.solver.func
        order = self.solver.error_order(term)
        _, fresh = self.controller.init(
            term, state.t, self.t_max, state.params, t_next - state.t, None, func, order
        )
        return dataclasses.replace(
            state,
            t_next=t_next,
            solver_state=solver_state,
            controller_state=_tree.as_arrays(fresh),  # which knows no error of this method
            dense=self._no_dense(state.params, solver_state),  # the last step is over
            made_jump=self._no_jump(),
        )

    def _no_dense(self, params: Float[Array, " P"], solver_state: PyTree) -> PyTree:
        """Zeros in the place of what interpolates a step, before there is one."""
        zero = jnp.zeros((), self.t_max.dtype)
        _, _, dense, _, _ = eqx.filter_eval_shape(
            attempt, self.solver, self._term(), zero, zero, params, solver_state, self._no_jump()
        )
        return jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), dense)

    def _no_jump(self) -> Bool[Array, ""] | None:
        """That the field has made no jump; `None` if the controller knows of none at all."""
        return None if isinstance(self.controller, Predictive) else jnp.array(False)

    def opened(self, state, budget):
        """As it is."""
        return state, state.steps + budget

    def closed(self, state):
        """As it is."""
        return state

    def going_on(self, state, until, limit):
        """Before `until`, and nothing has ended the run."""
        return (state.code == RUNNING) & (state.t < until) & (state.steps < limit)

    def _term(self) -> diffrax.ODETerm:
        return diffrax.ODETerm(_OfVector(self.clock.term(self.flow, self.problem), self.problem.params))

    def _parameters(self, vector: Float[Array, " P"]) -> PyTree[Array]:
        return _tree.like(self.problem.params, vector)

    def step(self, now, go):
        """As in diffeqsolve, except that nothing non-finite is accepted."""
        term = self._term()
        params, error, dense, solver_state, solver_result = attempt(
            self.solver, term, now.t, now.t_next, now.params, now.solver_state, now.made_jump
        )
        # the estimate as well, because a solver may refuse a step by it and leave the parameters finite
        finite = _tree.all_finite(params) if error is None else _tree.all_finite(params, error)
        safe = _tree.where(finite, params, now.params)
        error = jtu.tree_map(lambda e: jnp.where(finite & jnp.isfinite(e), e, jnp.inf), error)
        order = self.solver.error_order(term)
        mark, compared = now.mark, (now.params, safe, error)
        if now.mark is not None:
            mark = self._mark(now.mark, now.t_next - now.t, self._parameters(safe))
            if error is not None:  # log t is kept as accurate as the parameters
                one = jnp.ones_like(mark.error)
                wrong = jnp.where(jnp.isfinite(mark.error), jnp.abs(mark.error), jnp.inf)
                wrong *= (1 + self.problem.size) ** 0.5  # one of so many entries, of which a mean is taken
                magnified = jtu.tree_map(lambda e: e * self._magnification(mark).astype(e.dtype), error)
                compared = ((now.params, one), (safe, one), (magnified, wrong))
        keep, t, t_next, made_jump, controller_state, controller_result = self.controller.adapt_step_size(
            now.t,
            now.t_next,
            *compared[:2],
            None,
            compared[2],
            order,  # pyright: ignore[reportArgumentType]: None for methods without an estimate
            now.controller_state,
        )
        keep = jnp.asarray(keep)
        t = jnp.minimum(t, self.t_max)
        if self.clock.longest < np.inf:
            t_next = jnp.minimum(t_next, t + self.clock.longest)
        t_next = self._clip(t, t_next, keep)
        accept = keep & finite

        # diffrax's order of precedence: a failed solve counts only if its step would have been kept
        results = diffrax.RESULTS
        failed = results.where(keep, solver_result, results.successful)
        failed = results.where(failed == results.successful, controller_result, failed)
        nonfinite = jnp.where(finite, 0, now.nonfinite + 1)
        # no time passes any more, or a rejected step can't be made shorter by rounding
        stuck = (t_next <= t) | (~keep & (t_next >= now.t_next))
        code = jnp.select(
            [
                failed != results.successful,
                (keep & ~finite) | (nonfinite > _MAX_NONFINITE),
                stuck & (t < self.t_max),
            ],
            [SOLVER_FAILURE, NONFINITE, jnp.where(nonfinite > 0, NONFINITE, UNDERFLOW)],
            RUNNING,
        )
        if mark is not None:
            astray = accept & ~mark.holds
            code = jnp.where((code == RUNNING) & astray, ASTRAY, code)
            accept &= ~astray
        watched, watch_hvps = now.watched, now.watch_hvps
        if self.watch:
            margins, watched, hvps = jax.lax.cond(
                accept,
                lambda: self._margins(now, safe, None if mark is None else mark.log_t),
                lambda: (jnp.ones_like(now.sides), now.watched, jnp.array(0)),
            )
            code = jnp.where((code == RUNNING) & jnp.any(jnp.isnan(margins)), NONFINITE, code)
            code = jnp.where((code == RUNNING) & jnp.any(margins <= 0), STOPPED, code)
            watch_hvps += hvps
        after = FlowState(
            t_before=now.t,
            t=t,
            t_next=t_next,
            params=params,
            mark_before=now.mark,
            mark=mark,
            dense=dense,
            solver_state=solver_state,
            controller_state=controller_state,
            made_jump=None if now.made_jump is None else jnp.asarray(made_jump),
            steps=now.steps + 1,
            rejected=now.rejected + jnp.where(accept, 0, 1),
            rejected_first=now.rejected_first + jnp.where(~accept & (now.t == 0), 1, 0),
            nonfinite=nonfinite,
            code=code,
            result=failed,
            sides=now.sides,
            watched=watched,
            watch_hvps=watch_hvps,
        )
        # a rejected step leaves the position and whatever describes it as they were
        position = lambda s: (
            s.t_before,
            s.t,
            s.params,
            s.mark_before,
            s.mark,
            s.dense,
            s.solver_state,
            s.made_jump,
        )
        before = now
        if isinstance(self.solver, AbstractFlowSolver):  # keeps what the attempt has cost and learnt
            retry = self.solver.rejected(now.solver_state, solver_state)
            before = eqx.tree_at(lambda s: s.solver_state, now, retry)
        kept = _tree.where(accept, position(after), position(before))
        after = eqx.tree_at(position, after, kept, is_leaf=lambda x: x is None)
        return after if go is True else _tree.where(go, after, now)

    def _clip(self, t, t_next, keep):
        """The last step ends at t_max exactly, and no sliver of a step is left (as in diffrax)."""
        floor = self.t_max * (1 - 100 * jnp.finfo(self.t_max.dtype).eps)
        clipped = jnp.where(keep, self.t_max, t + 0.5 * (self.t_max - t))
        return jnp.where(t_next > floor, clipped, t_next)

    def where(self, state):
        """The time reached."""
        return Position(state.t, state.steps, state.code)

    def evaluate(self, state, position):
        """From the solver's dense output within the last step."""
        t = position.astype(state.t.dtype)
        # the end of the step itself, not its interpolation, so that records can't touch a bit of it
        log_t = None if state.mark is None else state.mark.log_t
        vector, log_t = jax.lax.cond(t >= state.t, lambda: (state.params, log_t), lambda: self._at(state, t))
        params = self._parameters(vector)
        if log_t is not None:
            return params, self._known(params, log_t)
        loss, gradient = self.problem.value_and_gradient(params)
        return params, {"loss": loss, "gradient_norm": _tree.norm(gradient)}

    def known(self, state):
        """None: a step rarely ends where a record is made."""
        del state

    def _at(self, state, t):
        """Within the last step, θ and log t."""
        interpolation = self.solver.interpolation_cls(t0=state.t_before, t1=state.t, **state.dense)
        params = interpolation.evaluate(t)
        if self.plain:
            return params, None
        share = (t - state.t_before) / (state.t - state.t_before)
        return params, marks.log_time(state.mark_before, state.mark.course, share)

    def _margins(self, state: FlowState, params: Float[Array, " P"], log_t: Array | None):
        """Of the stop conditions at a place on the step that follows `state` or led to it."""
        tree = self._parameters(params)
        return self.watch.margins(self.problem, tree, state.sides, state.watched, self._known(tree, log_t))

    def _mark(self, before: Mark, step: Array, params: PyTree[Array]) -> Mark:
        """After a `step` of the clock."""
        return marks.advance(self.clock, self.flow, self.problem, before, step, params)

    def _magnification(self, mark: Mark) -> Float[Array, ""]:
        """How much more an error of θ counts where margins are large.

        A relative error ε of θ is one of about δ = ε |log L| in the margins, and then of the weights of the
        examples. It enters the speeds at the ends of a step, by which records are interpolated, and its
        square is a drift to one side. So it is kept below 1e-4, and below √ε.
        """
        rtol = getattr(self.controller, "rtol", None)
        if rtol is None or mark.descent is None:
            return jnp.ones_like(mark.error)
        return jnp.maximum(1, jnp.abs(mark.descent.log_loss) * jnp.maximum(1e4 * rtol, jnp.sqrt(rtol)))

    def _known(self, params: PyTree[Array], log_t: Array | None) -> dict[str, Array]:
        """What the clock knows of a place."""
        return {} if log_t is None else marks.quantities(self.problem, params) | {"log_t": log_t}

    def locate(self, state):
        """By bisection of the margins on the dense output, until they cross first."""
        if float(state.t) == 0:  # the condition holds at the start
            return 0.0, int(np.argmin(np.abs(state.sides))), 0, 0
        t, which, evaluations, hvps = self._first_crossing(state)
        return float(t), int(which), self.watch.gradients() * int(evaluations), int(hvps)

    @eqx.filter_jit
    def _first_crossing(self, state):
        # the smallest margin crosses where the first of the conditions holds
        def evaluate(t):
            margins, _, hvps = self._margins(state, *self._at(state, t))
            return margins, hvps

        def halve(carry):
            low, high, count, spent = carry
            middle = 0.5 * (low + high)
            margins, hvps = evaluate(middle)
            held = jnp.any(margins <= 0)
            low, high = jnp.where(held, low, middle), jnp.where(held, middle, high)
            return low, high, count + 1, spent + hvps

        def apart(carry):
            low, high, count, _ = carry
            return (high - low > 4 * jnp.finfo(high.dtype).eps * high) & (count < 100)

        zero = jnp.array(0)
        _, t, count, spent = jax.lax.while_loop(apart, halve, (state.t_before, state.t, zero, zero))
        margins, hvps = evaluate(t)
        return t, jnp.argmin(margins), count + 1, spent + hvps

    def next_step(self, state):
        """None: what a step of the solver does is no property of the flow."""
        return None

    def shown(self, state):
        """The step size."""
        return {"step": f"{float(state.t_next - state.t):.3g}"}

    def step_losses(self, state):
        """Not kept: a flow has no steps of its own."""
        return None

    def doubts(self, start, state, losses):
        """A start that `atol` swamps, a loss that climbs, one that halts before the data are separated."""
        found = []
        atol = getattr(self.controller, "atol", None)
        if atol is not None:
            leaves = [np.ravel(p).astype(np.float64) for p in jtu.tree_leaves(start)]
            scale = float(np.linalg.norm(np.concatenate(leaves)) / np.sqrt(self.problem.size))
            if 0 < scale < 10 * float(atol):
                found.append(
                    f"atol = {float(atol):.1e} is not far below the scale {scale:.1e} of the start, "
                    "whose errors it ignores; use one a hundred times smaller than that"
                )
        allowed = 1e-2 * np.abs(losses[:-1]) + 1e-4 * np.abs(losses[0])  # errors at the bottom are no rise
        rise = np.max(np.diff(losses) - allowed, initial=-np.inf)
        if isinstance(self.flow, GradientFlow) and rise > 0:
            found.append(
                "the loss rose by more than 1 % between two records, which gradient flow can't do: the "
                "steps were too long to follow it; use a smaller rtol and atol, or a shorter dt0"
            )
        if state.mark is not None and marks.halts(self.problem, state.mark):
            found.append(
                f"the loss does not tend to 0 but stays at {float(losses[-1]):.6g}, with some example on the "
                "wrong side: the data seem not to be separable by this model, so that the direction of the "
                "parameters has no meaning as one of maximum margin"
            )
        return found

    def explain(self, state, code, initial_loss):
        """Tells apart a field that turns NaN, a blow-up, stiffness and a tolerance too tight."""
        t, h, symbol = float(state.t), float(state.t_next - state.t), self.clock.symbol
        steps, rejected = int(state.steps), int(state.rejected)
        start, here = (float(_tree.norm(p)) for p in (self.problem.params, state.params))
        grown = self.plain and here > 1e3 * (1 + start)  # in other clocks it may well
        if code == ASTRAY and state.mark.descent is not None:
            margin = -float(state.mark.descent.log_loss)
            if marks.is_blurred(10 * margin, state.t.dtype):
                return "clock_failure", (
                    f"the margins, {margin:.2g} at {symbol} = {t:.6g}, are so large that {state.t.dtype} can"
                    "not resolve their differences, which decide the direction; stop earlier"
                )
        if code == ASTRAY:
            return "clock_failure", f"{self.clock.failure} (after {symbol} = {t:.6g}, step {steps})"
        if code == SOLVER_FAILURE and isinstance(self.solver, AbstractFlowSolver):
            return "solver_failure", (
                f"{self._name} refused the step from {symbol} = {t:.6g}, which met NaN, or would need more "
                "than its largest number of stages or Krylov vectors, and "
                f"controller={type(self.controller).__name__} can't shorten it; take another controller, or "
                "shorter steps"
            )
        if code == SOLVER_FAILURE:
            message = diffrax.RESULTS[state.result] or "no message"
            return "solver_failure", f"{self._name} failed at {symbol} = {t:.6g}: {message}"
        if code in (NONFINITE, UNDERFLOW) and grown:
            return "diverged", (
                f"the parameters grew without bound near t = {t:.6g}: their norm went from "
                f"{start:.3g} to {here:.3g} (a finite-time blow-up, or a step far too long)"
            )
        if code in (NONFINITE, UNDERFLOW) and not self.plain and bool(self._is_over(state)):
            return "clock_failure", f"{self.clock.failure} (after {symbol} = {t:.6g}, step {steps})"
        if code == NONFINITE and t > 0.01 * float(jnp.finfo(state.t.dtype).max):
            return "nonfinite", (
                f"{symbol} came to the largest number of {state.t.dtype}, and no stop condition held before; "
                "give a finite t_max, or a level that is reached"
            )
        if code == NONFINITE:
            return "nonfinite", (
                f"the gradient, the step or a watched quantity became NaN or infinite at {symbol} = {t:.6g} "
                f"(step {steps}); the last finite state is kept. Look for log, sqrt or a division at 0 in "
                "model and loss"
            )
        if code == UNDERFLOW:
            return "step_underflow", (
                f"the step size fell below the resolution of {symbol} = {t:.6g} in {state.t.dtype}; the "
                "field may be discontinuous there (a ReLU kink), the tolerance beyond its accuracy, or the "
                "horizon too long for steps so short (use float64, or a solver made for stiffness)"
            )
        return "max_steps", (
            f"{steps} steps ({rejected} rejected) led only to {symbol} = {t:.6g} of {float(self.t_max):.6g}: "
            + self._limit(state, h)
        )

    @eqx.filter_jit
    def _is_over(self, state: FlowState) -> Array:
        return self.clock.is_over(self.flow, self.problem, self._parameters(state.params))

    def _limit(self, state: FlowState, h: float) -> str:
        """What keeps the steps short, from the step size times the sharpness."""
        if int(state.nonfinite):
            return f"the last {int(state.nonfinite)} attempts met NaN or infinite values"
        if not self.plain:
            return (
                f"the last step was {h:.3g} long; where the field has kinks, such as those of ReLU, steps "
                "stay short while the path slides along one; raise max_steps, or use another solver"
            )
        taken = float(state.t - state.t_before) or h
        if self.problem.dtype.itemsize < 4:
            return f"{self.problem.dtype} resolves too little to tell why; use float32 or float64"
        # Compiled, it doesn't warn: an eigenvalue that has not converged will do.
        find = eqx.filter_jit(curvature.top_eigenpairs)
        top = find(self.problem, params=self._parameters(state.params), rtol=1e-2, max_hvps=100).values[0]
        product = taken * float(top)
        where = f"the step {taken:.3g} times the sharpness {float(top):.3g} is {product:.2g}, so"
        # steps at the limit of stability are too long now and then
        if product > 1.5 and state.rejected > 0 and not isinstance(self.solver, AbstractFlowSolver):
            return f"{where} stiffness limits the step; use a solver made for it, or raise max_steps"
        return f"{where} the tolerance limits the step; raise max_steps, or loosen rtol and atol"

    @property
    def _name(self) -> str:
        return type(self.solver).__name__

    def spent(self, state: FlowState) -> int | None:
        """Gradients of the solver, `None` if its stages don't tell them."""
        if isinstance(self.solver, AbstractFlowSolver):
            return int(state.solver_state.gradients)
        per_step, at_start = gradients(self.solver)
        at_start *= 1 + int(state.rejected_first)  # what a rejected first step began with is computed again
        if isinstance(self.controller, Predictive) and self.dt0 is None:
            at_start += 1
        return None if per_step is None else per_step * int(state.steps) + at_start

    def stats(self, state):
        """Attempted steps, and gradients as far as the solver's stages tell them."""
        steps, rejected, spent = int(state.steps), int(state.rejected), self.spent(state)
        watching = self.watch.gradients() * (steps - rejected + 1)
        marks = 0 if self.plain else steps + 1
        hvps = int(getattr(state.solver_state, "hvps", 0)) + (marks if self.clock.curves else 0)
        return {
            "solver": self._name,
            "solver_reason": self.reason,
            "steps": steps,
            "rejected": rejected,
            "gradients": None if spent is None else spent + watching + marks,
            "hvps": int(state.watch_hvps) + hvps,
            "radius_gradients": int(getattr(state.solver_state, "radius_gradients", 0)),
        }


class _OfVector(eqx.Module):
    """The field of a term for parameters that are PyTrees `like` a given one, as one of vectors."""

    term: diffrax.ODETerm
    like: PyTree[Array]

    def __call__(self, t, vector, args):
        return _tree.vector(self.term.vf(t, _tree.like(self.like, vector), args))
