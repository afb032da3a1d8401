"""Stabilised explicit Runge-Kutta-Chebyshev solvers, of order two and, with memory, three."""

from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int

from . import _linalg as la
from . import _radius as radii
from ._abstract import AbstractFlowSolver, refusal
from ._bend import Bend, extrapolated, grown
from ._linalg import Scalar, Vector
from ._radius import Radius
from ._sweep import run_step


class RKCState(eqx.Module):
    """Solver state; `gradients` and its kin are running totals over the solve."""

    f0: Vector  # vector field at the start of the step
    radius: Radius
    past: tuple[Vector, ...] | None  # solution at the last steps, newest first
    times: Float[Array, " past"]  # when
    known: Int[Array, ""]  # steps made so far, each of which sets one of them
    growth: Scalar  # smoothed logarithm of the growth from step to step
    stages: Int[Array, ""]  # of the last step
    gradients: Int[Array, ""]  # all evaluations of the vector field
    radius_gradients: Int[Array, ""]  # of these, the ones made for the spectral radius


class _AbstractRKC(AbstractFlowSolver):
    max_stages: eqx.AbstractVar[int]
    every: eqx.AbstractVar[int]

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.AbstractLocalInterpolation]] = (
        dfx.ThirdOrderHermitePolynomialInterpolation
    )
    memory: ClassVar[int]  # number of past solution values that are kept

    def __check_init__(self):
        if self.max_stages < 2:
            raise ValueError(f"max_stages must be at least 2, but {self.max_stages} came (default 1000).")
        if self.every < 1:
            raise ValueError(f"every must be at least 1, but {self.every} came (default 4).")

    def init(self, terms, t0, t1, y0, args) -> RKCState:
        del t1
        return _init(terms.vf, la.as_time(t0), y0, args, self.memory)

    def begun(self, t0, y0, f0, gradients, radius, direction) -> RKCState:
        """The state at a point where the field is `f0`, after so many gradients.

        The spectral radius is about `radius`, found along the unit vector `direction`, where the first step
        probes it anew.
        """
        return _begun(la.as_time(t0), y0, f0, gradients, radius, direction, self.memory, self.every)

    def step(self, terms, t0, t1, y0, args, solver_state: RKCState, made_jump):
        dtype = la.real_dtype(y0)
        t0, t1 = la.as_time(t0), la.as_time(t1)
        state = solver_state
        h = jnp.asarray(terms.contr(t0, t1), dtype)
        span = jnp.asarray(t1 - t0, state.times.dtype)
        jump = jnp.asarray(made_jump)
        state = eqx.tree_at(lambda s: s.known, state, jnp.where(jump, 0, state.known))
        bend, growth = Bend(), state.growth
        if self.memory > 0:
            ages = jnp.asarray(t0, state.times.dtype) - state.times
            growth = jnp.where(state.known > 0, grown(state.growth, span, ages[0], state.known), state.growth)
            ready = (state.known >= self.memory) & (h != 0)
            bend = extrapolated(span, y0, state.past, ages, growth, ready)
        # Closed-over tracers become explicit operands, as the derivative rule needs.
        vf = eqx.filter_closure_convert(terms.vf, t0, y0, args)
        radius = la.stop_gradient(state.radius)
        operands = (vf, t0, span, h, y0, args, state.f0, jump, radius, bend)
        sweep = run_step(operands, max_stages=self.max_stages, every=self.every)

        increment = bend.at(1, sweep.point)
        y1 = la.add(y0, increment)
        error = jtu.tree_map(
            lambda d, f, k: 0.4 * (jnp.asarray(h, d.dtype) * f + k) - 0.8 * d,
            sweep.point, sweep.f0, bend.rate(1, la.scale(h, sweep.field)),
        )  # fmt: skip
        error = jtu.tree_map(lambda e: jnp.where(sweep.failed, jnp.inf, e), error)

        time = jax.lax.stop_gradient(jnp.asarray(t1, dtype))
        radius = la.stop_gradient(sweep.radius).alarmed(
            time, la.stop_gradient(sweep.ratio), la.stop_gradient(sweep.best), 2.0
        )
        past, times = state.past, state.times
        if self.memory > 0:
            past = (y0, *past[:-1])
            times = jnp.concatenate([jnp.asarray(t0, times.dtype)[None], times[:-1]])
        after = RKCState(
            f0=sweep.field,
            radius=radius.advanced(jax.lax.stop_gradient(h), sweep.evaluations),
            past=past,
            times=times,
            known=state.known + 1,
            growth=growth,
            stages=sweep.stages.astype(jnp.int32),
            gradients=state.gradients + sweep.evaluations,
            radius_gradients=state.radius_gradients + sweep.probes,
        )
        dense_info = dict(y0=y0, y1=y1, k0=la.scale(h, sweep.f0), k1=la.scale(h, sweep.field))
        return y1, error, dense_info, after, refusal(sweep.failed)

    def rejected(self, before: RKCState, attempted: RKCState) -> RKCState:
        """State from which to retry a step: what the attempt cost and learnt is kept.

        `before` is the state that the rejected `step` was given, `attempted` the one it returned.
        """
        radius = eqx.tree_at(
            lambda r: (r.time, r.step),
            attempted.radius,
            # The attempt's end is no longer the present.
            (
                jnp.minimum(attempted.radius.time, before.radius.time + before.radius.step),
                jnp.zeros_like(before.radius.step),
            ),
        )
        return eqx.tree_at(
            lambda s: (s.radius, s.stages, s.gradients, s.radius_gradients),
            before,
            (radius, attempted.stages, attempted.gradients, attempted.radius_gradients),
        )

    def prepared(self, rtol, atol):
        """Itself: the tolerances don't matter to it."""
        del rtol, atol
        return self

    def func(self, terms, t0, y0, args):
        """The vector field."""
        return terms.vf(t0, y0, args)


class RKC2(_AbstractRKC):
    r"""Runge-Kutta-Chebyshev, order 2: explicit, for stiff problems with a real spectrum.

    With $s$ evaluations per step the stability interval is $[-\beta, 0]$,
    $\beta = \tfrac23 (s^2 - 1)(1 - \tfrac{2}{15}\varepsilon)$, $\varepsilon = 2/13$, so that a
    step $h$ costs about $\sqrt{1.53\, h\rho}$ evaluations, $\rho$ being the spectral radius of
    the Jacobian, where a classical method would need a number proportional to $h\rho$. All stages
    but the first are consistent of second order: no order reduction on stiff problems.

    The stages are

    $$Y_j = (1 - \mu_j - \nu_j) y_0 + \mu_j Y_{j-1} + \nu_j Y_{j-2}
          + \tilde\mu_j h F_{j-1} + \tilde\gamma_j h F_0 ,$$

    and the error is estimated by $\tfrac45 (y_0 - y_1) + \tfrac25 h (F_0 + F_1)$, of third order.
    $F_1$ is the first evaluation of the next step. Dense output is cubic Hermite.

    The number of stages is chosen in every step from a bound on $\rho$ that the solver keeps up
    to date by itself: one gradient every `every` steps, and an alarm raised by the stages. A step
    whose stages show an eigenvalue beyond the bound starts again with more stages. Where more
    than `max_stages` would be needed the step is refused without evaluating anything, and the
    step size controller shortens it.

    Eigenvalues far off the real axis are outside the stability region; error control then reduces
    the step to where the method is stable, at the cost of efficiency, not of correctness.

    The state counts evaluations: `gradients` (all) and `radius_gradients` (those among them spent
    on the spectral radius). diffrax forgets the state of a rejected step; a stepper that calls
    `rejected` does not.

    ??? cite "Reference"

        Sommeijer, Shampine, Verwer: RKC: an explicit solver for parabolic PDEs.
        Journal of Computational and Applied Mathematics 88 (1998) 315-326.
    """

    max_stages: int = eqx.field(static=True, default=1000)
    every: int = eqx.field(static=True, default=4)

    memory: ClassVar[int] = 0

    def order(self, terms):
        """2"""
        del terms
        return 2

    def error_order(self, terms):
        """3: the estimate is of the error of the method itself, not of an embedded lower one."""
        del terms
        return 3

    def tolerances(self, rtol, atol):
        r"""Tolerances for the controller, such that the delivered error is close to `rtol`.

        The local error $\sim h^3$ is held at the tolerance and the global one is $\sim h^2$, so
        that asking the controller for `rtol` delivers $\propto$ `rtol`$^{2/3}$.
        """
        return _tolerances(rtol, atol, 3 / 2, 3.5)


class RKC3(_AbstractRKC):
    r"""Runge-Kutta-Chebyshev with memory, order 3, at the cost per step of order 2.

    The defect of every RKC stage is $e_j h^3 y'''$ to leading order, stiff or not. So the polynomial $p$
    through the last four solution values is extrapolated over the step, what it has beyond its value and
    slope at the start, $q(t) = p(t) - p(t_0) - (t - t_0)\, p'(t_0)$, is taken off, and
    [`RKC2`][gflow.solvers.RKC2] integrates

    $$u' = f(t, u + q(t)) - q'(t), \qquad u = y - q .$$

    $u'''$ is of first order in $h$, which makes the local error $O(h^4)$ uniformly in the stiffness
    and raises the stage order with it; the embedded estimate, applied to $u$, is of fourth order.
    No evaluation is added. The memory uses solution values only, never values of the field, in
    which stiff components are amplified.

    $p$ is a polynomial in the logarithmic time $s = \log(1 + \varrho\,(t - t_0)/h)/\varrho$, with
    $1 + \varrho$ the smoothed ratio of a step to the one before it. Training slows down: it relaxes on
    ever longer time scales, and steps grow in proportion. In $s$ they are even, and the solution is
    smoother than in $t$, so that steps are longer.

    Stability: the same interval as RKC2 for step ratios from 0.7 to 1.3, with every number of stages, and to
    1.8 with three and more (`benchmarks/_rkc_stability.py`; with a polynomial in $t$ it would be 1.1).
    After a larger growth of the step the extrapolated part is scaled down until the weights of the
    past are bounded, which turns the method towards RKC2; the estimate then sees the larger error
    and restrains the growth. The first three steps are RKC2.

    Memory: three more parameter vectors than RKC2. Otherwise as RKC2.

    ??? cite "Reference"

        RKC2 is due to Sommeijer, Shampine, Verwer (1998). The predictor is a form of deferred
        correction with the correction known beforehand; two-step methods of this family are studied
        in Moisa: Third order two-step Runge-Kutta-Chebyshev methods. Journal of Computational and
        Applied Mathematics 432 (2023).
    """

    max_stages: int = eqx.field(static=True, default=1000)
    every: int = eqx.field(static=True, default=4)

    memory: ClassVar[int] = 3

    def order(self, terms):
        """3"""
        del terms
        return 3

    def error_order(self, terms):
        """4: the estimate is of the error of the method itself."""
        del terms
        return 4

    def tolerances(self, rtol, atol):
        r"""Tolerances for the controller, such that the delivered error is close to `rtol`.

        As for [`RKC2`][gflow.solvers.RKC2], with local error $\sim h^4$ and global error $\sim h^3$.
        """
        return _tolerances(rtol, atol, 4 / 3, 2.0)


def _tolerances(rtol, atol, power, factor):
    inner = la.least((factor * rtol) ** power, 0.3)
    return inner, inner / rtol * atol


def _init(vf, t0, y0, args, memory: int) -> RKCState:
    """Field at the start, and the spectral radius by power iteration to a few per cent."""
    dtype = la.real_dtype(y0)
    # Differentiable, because it is the first stage of the first step; what follows is not.
    f0 = la.field(vf, t0, y0, args)
    time, y, args, base = la.stop_gradient((t0, y0, args, f0))
    displacement = la.difference_step(y)

    def cond(carry):
        k, _, value, before = carry
        settled = jnp.abs(value - before) <= 0.05 * value
        return (k < 20) & ~((k >= 4) & settled) & jnp.isfinite(value)

    def body(carry):
        k, v, value, _ = carry
        field = la.field(vf, time, la.axpy(displacement, v, y), args)
        change = la.stop_gradient(la.sub(field, base))
        length = la.norm(change)
        return k + 1, radii.unit_or(change, length, v), length / displacement, value

    zero = jnp.zeros((), dtype)
    count = jnp.zeros((), jnp.int32)
    begin = (count, radii.start_direction(base), zero, zero)
    probes, v, value, before = la.stop_gradient(jax.lax.while_loop(cond, body, begin))
    value = jnp.where(jnp.isfinite(value), value, before)  # a probe may leave the domain of the field
    state = _begun(time, y, f0, probes + 1, value, v, memory, 0)
    return eqx.tree_at(lambda s: s.radius_gradients, state, probes)


def _begun(time, y0, f0, gradients, value, direction, memory: int, age: int) -> RKCState:
    dtype = la.real_dtype(y0)
    count = jnp.zeros((), jnp.int32)
    zero = jnp.zeros((), dtype)
    known = (direction, jnp.asarray(value, dtype), zero, jnp.asarray(time, dtype), zero)
    radius = Radius(*known, count + age, count + age * radii.SPENT)
    past = (la.scale(0, y0),) * memory or None  # diffrax's adjoints stumble over an empty tuple
    times = jnp.zeros((memory,), jnp.result_type(time, dtype))
    return RKCState(f0, radius, past, times, count, zero, count, gradients, count)
