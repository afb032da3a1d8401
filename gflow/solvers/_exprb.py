"""An exponential Rosenbrock solver whose functions of the Jacobian come from Lanczos."""

import functools
from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float, Int

from gflow import _tree

from . import _linalg as la
from ._abstract import AbstractFlowSolver, check_real, refusal
from ._linalg import Scalar, Vector
from ._phi import matrix_phis, phi
from ._quintic import WITHIN, QuinticInterpolation, with_bend

_STAGE = 0.75  # of the step, where the remainder is evaluated: the only place where one is enough for order 4
_AT = WITHIN.index(_STAGE)
_KEPT = 8  # basis vectors that a rejected step hands on
# A step is smoothed if what its Krylov space left out decays so many times within it, and is so large a share
# of the field at the end.
_STIFF, _KICK = 3.0, 0.3


class EXPRBState(eqx.Module):
    """Solver state; the counts are running totals over the solve."""

    f0: Vector
    basis_size: Int[Array, ""]  # Krylov dimension of the last step
    gradients: Int[Array, ""]  # all evaluations of the vector field
    krylov_gradients: Int[Array, ""]  # of these, the ones made for products with the Jacobian
    first: Vector  # leading axis: the first basis vectors of the last attempt
    small: Float[Array, "k k"]  # the Jacobian on them
    kept: Int[Array, ""]  # how many of them still hold: those of a rejected step, whose start is the same


class _Krylov(eqx.Module):
    """Carry of the loop of a step: a Lanczos phase, the stage, the end point, the smoothed end point."""

    phase: Int[Array, ""]  # 0 time derivative, 1 Lanczos, 2 stage, 3 end point, 4 smoothed, 5 done
    point: Vector  # where the field is evaluated next, relative to y0
    field: Vector
    drift: Vector  # time derivative of the field
    small: Float[Array, "m m"]  # the Jacobian on the basis
    beta: Scalar
    following: Vector  # next basis vector
    size: Int[Array, ""]
    phis: Float[Array, "4 5 m m"]  # of the steps to `WITHIN`, and of the whole one
    rest: Vector  # error estimate
    remainder: Vector  # of the linearisation, at the end point
    within: Vector  # leading axis: the solution at `WITHIN`, relative to y0
    evaluations: Int[Array, ""]
    failed: Array


def _apply(basis: Vector, c) -> Vector:
    """Linear combination of the basis vectors."""
    return jtu.tree_map(lambda v: jnp.tensordot(c.astype(v.dtype), v, axes=1), basis)


def _sums(basis: Vector, inside: Array, outside: list[tuple[Array, Vector]]) -> Vector:
    """Points, one a row, with these coordinates in the basis and these multiples of other vectors."""
    points = _apply(basis, inside)
    for factors, vector in outside:
        add = lambda p, x: p + jnp.multiply.outer(factors.astype(x.dtype), x)  # noqa: B023
        points = jtu.tree_map(add, points, vector)
    return points


def _project(basis: Vector, x: Vector) -> Array:
    """Inner products with the basis vectors."""
    parts = jtu.tree_map(lambda v, y: v.reshape(v.shape[0], -1) @ y.reshape(-1), basis, x)
    first, *others = jtu.tree_leaves(parts)
    return functools.reduce(jnp.add, others, first)


def _orthogonalised(basis: Vector, w: Vector, size: Int[Array, ""]):
    """Inner products of `w` with the first vectors of the basis, and what is left of it without them."""
    most = jtu.tree_leaves(basis)[0].shape[0]

    def block(n):
        vectors = jtu.tree_map(lambda b: b[:n], basis)
        a = _project(vectors, w)
        rest = la.sub(w, _apply(vectors, a))
        again = _project(vectors, rest)  # twice is enough
        rest = la.sub(rest, _apply(vectors, again))
        return jnp.zeros((most,), a.dtype).at[:n].set(a + again), rest

    return la.leading(block, most, size)


@jax.default_matmul_precision("highest")  # TF32 would spoil the projections
def _loop(operands, *, most: int, accuracy: float, autonomous: bool, kind) -> tuple[_Krylov, Vector]:
    """The loop of a step: its last carry, and the basis vectors along a leading axis, zero from `size` on."""
    vf, t0, span, h, y0, args, f0, rtol, atol, known, known_small, kept = operands
    dtype = la.real_dtype(y0)
    eps = float(jnp.finfo(dtype).eps)
    length = la.norm(f0)
    flat = length == 0
    length = jnp.where(flat, 1, length)  # not a start of zeros, which would lose the derivative
    start = la.scale(1 / length, f0)
    displacement = jax.lax.stop_gradient(la.difference_step(y0))
    zero = la.scale(0, y0)
    weights = jax.lax.stop_gradient(jtu.tree_map(lambda y: 1 / (atol + rtol * jnp.abs(y)), y0))
    # The displacement in time is a fraction of the step, like that in space of the solution. Backwards
    # diffrax turns the time round, so that its `span` is positive and the step `h` negative.
    share = eps**0.4

    shares = jnp.asarray((*WITHIN, 1.0), dtype)

    def linear(k: _Krylov, basis: Vector, which: slice):
        """`s phi_1(sJ) F (+ s² phi_2(sJ) f_t)` for steps s, each with the functions of its own.

        As coordinates in the basis, and multiples of vectors outside of it: where the linearised flow is.
        """
        steps, phis = h * shares[which], k.phis[:, which]
        inside = steps[:, None] * phis[0, :, :, 0] * length
        if autonomous:
            return inside, []
        v = _project(basis, k.drift)
        outside = la.sub(k.drift, _apply(basis, v))
        return inside + steps[:, None] ** 2 * (phis[1] @ v), [(steps**2 / 2, outside)]

    def lanczos(k: _Krylov, basis: Vector, field):
        w = la.scale(1 / displacement, la.sub(field, f0))
        m = k.size
        products, w = _orthogonalised(basis, w, m + 1)
        i, j = jnp.indices((most, most), sparse=True)
        # not three updates in place, each of which is compiled as several programs
        linked = jnp.where((jnp.maximum(i, j) == m) & (jnp.abs(i - j) == 1), k.beta, k.small)
        small = jnp.where((i == m) & (j == m), products, linked)
        beta = la.norm(w)
        size = m + 1
        phis = matrix_phis(h * small, (*WITHIN, 1.0), size)
        # First term of what the Krylov approximation of h phi_1(hJ) F lacks; `finish` adds it.
        residual = h**2 * length * beta * jnp.abs(phis[1, -1, m, 0])
        breakdown = beta <= 100 * eps * jnp.max(jnp.abs(small))
        # of rounding errors alone where the basis is complete, but its derivative counts
        link = jnp.where(breakdown, 1, beta)
        direction = la.scale(1 / link, w)
        weighted = la.norm(jtu.tree_map(jnp.multiply, weights, la.stop_gradient(direction)))
        weighted = weighted / max(la.size(y0), 1) ** 0.5
        settled = (residual * weighted <= accuracy) | breakdown | flat
        full = size >= most
        failed = (full & ~settled) | ~jnp.isfinite(beta)
        k = eqx.tree_at(
            lambda q: (q.small, q.beta, q.following, q.size, q.phis, q.failed, q.point),
            k,
            (small, link, direction, size, phis, k.failed | failed, la.scale(displacement, direction)),
        )

        def leave():
            stage = _sums(basis, *linear(k, basis, slice(_AT, _AT + 1)))
            return jnp.asarray(2), jtu.tree_map(lambda x: x[0], stage)

        next_one = jax.lax.cond(settled & ~failed, leave, lambda: (k.phase, k.point))
        return eqx.tree_at(lambda q: (q.phase, q.point), k, next_one)

    def along(k: _Krylov, basis: Vector, inside: Array, outside: Array):
        """The Jacobian's product with a vector of the basis; of `outside`, what leads out of the space."""
        return la.axpy(k.beta * outside[k.size - 1], k.following, _apply(basis, k.small @ inside))

    def finish(k: _Krylov, basis: Vector, field):
        """Stage evaluated: the remainder `D` of the linearisation there, and the end point."""
        # What the Krylov space lacks of the time derivative's part stays in the remainder, which takes it for
        # a quadratic function of time, as it is.
        own = _STAGE * h * k.phis[0, _AT, :, 0] * length
        inside = own if autonomous else _project(basis, k.point)
        product = along(k, basis, inside, own)
        remainder = la.sub(la.sub(field, f0), product)
        if not autonomous:
            remainder = la.axpy(-_STAGE * h, k.drift, remainder)
        remainder = la.scale(1 / _STAGE**2, remainder)  # at the end, if it grows like the square of time
        d = _project(basis, remainder)
        outside = la.sub(remainder, _apply(basis, d))
        # Outside the Krylov space phi_3 is taken at zero.
        bent, beyond = 2 * h * shares[:, None] ** 3 * (k.phis[2] @ d), h / 3 * shares**3
        rest = _sums(basis, bent[-1:], [(beyond[-1:], outside)])
        # First terms of what both Krylov approximations lack; not at the stage itself, because there the
        # product with the Jacobian must be known.
        last = k.size - 1
        lacking = length * k.phis[1, :, last, 0] + 2 * shares**2 * (k.phis[3, :, last] @ d)
        lacking *= (h * shares) ** 2 * k.beta
        straight, others = linear(k, basis, slice(None))
        points = _sums(basis, straight + bent, [*others, (beyond, outside), (lacking, k.following)])
        rest = jtu.tree_map(lambda r, x: with_bend(r[0], x), rest, points)
        within, end = (jtu.tree_map(lambda x, at=at: x[at], points) for at in (slice(-1), -1))
        to = lambda q: (q.phase, q.point, q.rest, q.remainder, q.within)
        return eqx.tree_at(to, k, (jnp.asarray(3), end, rest, remainder, within))

    def smooth(k: _Krylov, basis: Vector, field):
        """End point evaluated. Takes back what stiff directions outside of the basis got too much of.

        With z, what lies outside in the end point, Jz is known by now. Of the eigenvalues that z meets, one
        taken for zero and one at |Jz|² / z·Jz have the same moments (a Gauss-Radau rule), so that the stiff
        part of z is Jz over that one. It got phi_3(0) where phi_3 of it was due.
        """
        inside = _project(basis, k.point)
        z = la.sub(k.point, _apply(basis, inside))
        expected = la.add(la.add(f0, k.remainder), along(k, basis, inside, inside))  # without Jz
        excess = la.sub(field, expected)
        size, product = la.norm(excess), h * _tree.dot(z, excess)
        decays = product < 0
        stiffness = (h * size) ** 2 / jnp.where(decays, product, -1)
        kicked = decays & (stiffness < -_STIFF) & (size > _KICK * la.norm(field))
        stiffness = jnp.where(kicked, stiffness, -_STIFF)
        factor = jnp.where(kicked, h * (6 * phi(stiffness, 3)[3] - 1) / stiffness, 0)
        smoothed = la.select(kicked, la.axpy(factor, excess, k.point), k.point)
        after = jnp.where(kicked, 4, 5), field, smoothed
        return eqx.tree_at(lambda q: (q.phase, q.field, q.point), k, after)

    def body(carry: tuple[_Krylov, Vector]):
        k, basis = carry
        # What a branch returns is copied, so that none may return all basis vectors.
        m = jnp.minimum(k.size, most - 1)
        basis = jtu.tree_map(lambda b, x: b.at[m].set(jnp.where(k.phase == 1, x, b[m])), basis, k.following)
        late = jnp.select([k.phase == 0, k.phase == 1, k.phase == 2], [share, 0.0, _STAGE], 1.0)
        t = t0 + (late * span).astype(jnp.result_type(t0))
        field = la.field(vf, t, la.add(y0, k.point), args)
        k = eqx.tree_at(lambda q: q.evaluations, k, k.evaluations + 1)

        def derivative(k):
            drift = la.scale(1 / (share * h), la.sub(field, f0))
            point = la.scale(displacement, k.following)
            return eqx.tree_at(lambda q: (q.phase, q.drift, q.point), k, (jnp.asarray(1), drift, point))

        done = lambda k: eqx.tree_at(lambda q: (q.phase, q.field), k, (jnp.asarray(5), field))
        k = jax.lax.switch(
            k.phase,
            [
                derivative,
                lambda k: lanczos(k, basis, field),
                lambda k: finish(k, basis, field),
                (lambda k: smooth(k, basis, field)) if autonomous else done,
                done,
            ],
            k,
        )
        return k, basis

    count = jnp.zeros((), jnp.int32)
    few = known_small.shape[0]
    holds = jnp.arange(few) < kept
    block = jnp.where(holds[:, None] & holds, known_small, 0)
    take = lambda v: jnp.where(holds.reshape(-1, *[1] * (v.ndim - 1)), v, 0)
    following = jtu.tree_map(lambda v, x: jnp.where(kept > 0, v[kept], x), known, start)
    first = _Krylov(
        phase=jnp.asarray(1 if autonomous else 0),
        point=la.scale(displacement, following) if autonomous else zero,
        field=f0, drift=zero,
        small=jnp.zeros((most, most), dtype).at[:few, :few].set(block),
        beta=known_small[kept, kept - 1], following=following, size=kept,
        phis=jnp.zeros((4, len(WITHIN) + 1, most, most), dtype), rest=zero, remainder=zero,
        within=jtu.tree_map(lambda y: jnp.zeros((len(WITHIN), *y.shape), y.dtype), y0),
        evaluations=count, failed=jnp.asarray(False),
    )  # fmt: skip
    basis = jtu.tree_map(lambda v: jnp.zeros((most, *v.shape[1:]), v.dtype).at[:few].set(take(v)), known)
    going_on = lambda carry: (carry[0].phase < 5) & ~carry[0].failed
    return eqxi.while_loop(going_on, body, (first, basis), max_steps=most + 4, kind=kind)


@eqx.filter_custom_jvp
def _run(operands, *, most, accuracy, autonomous):
    return _loop(operands, most=most, accuracy=accuracy, autonomous=autonomous, kind="lax")


@_run.def_jvp
def _run_jvp(primals, tangents, *, most, accuracy, autonomous):
    def run(operands):
        return _loop(operands, most=most, accuracy=accuracy, autonomous=autonomous, kind="bounded")

    return eqx.filter_jvp(run, primals, tangents)


def is_autonomous(vf, t0, y0, args) -> bool:
    """Whether the field's program never reads the time."""
    arrays, static = eqx.partition((y0, args), eqx.is_array)

    def field(t, arrays):
        y, a = eqx.combine(arrays, static)
        return vf(t, y, a)

    program = jax.make_jaxpr(field)(jnp.asarray(t0, jnp.result_type(float)), arrays).jaxpr
    # diffrax multiplies the time by ±1 even if nothing reads the product
    _, (reads, *_) = dce_jaxpr(program, [True] * len(program.outvars))
    return not reads


class EXPRB42(AbstractFlowSolver):
    r"""Exponential Rosenbrock method of order 3, or 4 in part, matrix-free, for symmetric Jacobians.

    With $F = f(y_0)$, $J = f'(y_0)$:

    $$U = y_0 + \tfrac34 h \varphi_1(\tfrac34 hJ) F, \qquad D = f(U) - F - J (U - y_0), \qquad
      y_1 = y_0 + h \varphi_1(hJ) F + \tfrac{32}{9} h \varphi_3(hJ) D ,$$

    which has order 4 as it stands, and order 3 with Krylov spaces, of which the part of $D$ outside is not
    multiplied by the right function; its error there is small. The last term estimates the error of the
    embedded method of order 2. A-stable; exact for linear problems. For a field that depends on time,
    $h^2 \varphi_2(hJ)\, \partial_t f$ is added to $y_1$, and likewise to $U$.

    $\varphi_1(hJ) F$ is taken from a Lanczos process started with $F$, fully reorthogonalised,
    whose products with $J$ are difference quotients (one gradient each). The first term of what is
    lacking after $m$ of them, $h^2 \|F\| \beta_m\, (e_m^T \varphi_2(hT_m) e_1)\, v_{m+1}$, is added to $y_1$
    (Saad's corrected scheme); the process stops when its root mean square, over `atol` $+$ `rtol` $|y_0|$,
    is below `accuracy`. $J(U - y_0)$ then costs nothing, and $\varphi_3(hJ) D$ reuses the space. Of the part
    $V_m d$ of $D$ inside it the first term lacking,
    $\tfrac{32}{9} h^2 \beta_m\, (e_m^T \varphi_4(hT_m) d)\, v_{m+1}$, is added likewise: without it small
    errors cost up to twice as much. The part outside is multiplied by $\varphi_3(0)$. A step costs $m + 2$
    gradients (one more if it is smoothed, or the field depends on time): $m$ is small where a few large
    eigenvalues stand apart from the rest, and grows like $\sqrt{h\rho}$ where they don't. A step that would
    need more than `max_basis` vectors is refused, and the step size controller shortens it.

    What $\varphi_3(0)$ does to slow directions is right, but stiff ones get too much, which hardly matters by
    itself and yet makes the next steps short. It shows in $f(y_1)$: where that is far from what was expected,
    and the excess $e$ belongs to stiff directions, $y_1$ is *smoothed*. Let $z$ be the part of $y_1 - y_0$
    outside the space, so that $e \approx Jz$. An eigenvalue 0 and one $\lambda = |e|^2 / z \cdot e$ have
    the moments of those that $z$ meets (a Gauss-Radau rule), so that $e/\lambda$ is the stiff part of $z$,
    and $(6\varphi_3(h\lambda) - 1)\, e/\lambda$ is added. That costs one gradient, in steps that need it.
    Fields that depend on time are not smoothed.

    Steps thousands of times longer than $1/\rho$, as in log-loss time, are not for this method: there the
    remainder is no quadratic function of time, and its end is overshot; take `EXPRB43` or `RKC2`.

    `rtol` and `atol` should be those of the step size controller.
    A stepper that calls `rejected` retries a step with the first vectors of the attempt, up to eight.

    Dense output is the quintic through the solution at both ends of the step and at four times within, which
    the Krylov space gives for no gradient. A step may be so long that fast directions die out early in it,
    where no polynomial follows them: what the quartic without the first of these times misses there counts
    as error as well, entry by entry.

    Memory: `max_basis` parameter vectors and some 50 more.

    Derivatives of the solution are those of the method, whose Krylov space is made for the solution. Where
    that has lost its stiff components, but its derivative has not, they are wrong even though the solution is
    right; there take `RKC2`, or `EXPRB43(symmetric=True)` if the problem is small.

    The Jacobian must be symmetric. If it is not, the method is of lower order and the error
    estimate shortens the step.

    ??? cite "References"

        Luan: Fourth-order two-stage explicit exponential integrators for time-dependent PDEs. Applied
        Numerical Mathematics 112 (2017) 91-103.
        Hochbruck, Ostermann, Schweitzer: Exponential Rosenbrock-type methods. SIAM Journal on
        Numerical Analysis 47 (2009) 786-803.
        Saad: Analysis of some Krylov subspace approximations to the matrix exponential operator.
        SIAM Journal on Numerical Analysis 29 (1992) 209-228.
    """

    rtol: Scalar | float = 1e-4
    atol: Scalar | float = 1e-7
    max_basis: int = eqx.field(static=True, default=40)
    accuracy: float = eqx.field(static=True, default=0.5)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.AbstractLocalInterpolation]] = QuinticInterpolation

    def __check_init__(self):
        if self.max_basis < 2:
            raise ValueError(f"max_basis must be at least 2, but {self.max_basis} came (default 40).")

    def order(self, terms):
        """3"""
        del terms
        return 3

    def error_order(self, terms):
        """3: the error estimated is that of the embedded method of order 2."""
        del terms
        return 3

    def tolerances(self, rtol, atol):
        r"""Tolerances for the controller, such that the delivered error is close to `rtol`.

        Half as much again, with which, on the smooth problems of `benchmarks/solvers.py` and for rtol from
        1e-2 to 1e-6, the error was between a tenth of `rtol` and twice as much; but at most 7e-3, beyond
        which a run gets dearer.
        """
        inner = la.least(1.5 * rtol, 7e-3)
        return inner, inner / rtol * atol

    def prepared(self, rtol, atol) -> "EXPRB42":
        """The same solver with the tolerances of the controller."""
        # arrays, so that other tolerances are not another program
        return eqx.tree_at(lambda s: (s.rtol, s.atol), self, (jnp.asarray(rtol), jnp.asarray(atol)))

    def init(self, terms, t0, t1, y0, args) -> EXPRBState:
        """The state before the first step: one evaluation."""
        del t1
        check_real(y0, "EXPRB42")
        count = jnp.zeros((), jnp.int32)
        return self.begun(y0, la.field(terms.vf, t0, y0, args), count + 1)

    def begun(self, y0, f0, gradients) -> EXPRBState:
        """The state at a point where the field is known to be `f0`, after so many gradients."""
        few = min(_KEPT + 1, self._most(y0))
        count = jnp.zeros((), jnp.int32)
        first = jtu.tree_map(lambda y: jnp.zeros((few, *y.shape), y.dtype), y0)
        return EXPRBState(f0, count, gradients, count, first, jnp.zeros((few, few), la.real_dtype(y0)), count)

    def _most(self, y0) -> int:
        return min(self.max_basis, max(la.size(y0), 1))

    def step(self, terms, t0, t1, y0, args, solver_state: EXPRBState, made_jump):
        """One step from `t0` to `t1`, as diffrax asks for it."""
        state = solver_state
        dtype = la.real_dtype(y0)
        t0, t1 = la.as_time(t0), la.as_time(t1)
        h = jnp.asarray(terms.contr(t0, t1), dtype)
        vf = eqx.filter_closure_convert(terms.vf, t0, y0, args)
        f0, extra = state.f0, 0
        if made_jump is not False:
            jump = jnp.asarray(made_jump)
            f0 = jax.lax.cond(jump, lambda: vf(t0, y0, args), lambda: state.f0)
            extra = jump.astype(jnp.int32)
        # A batch member that has arrived makes empty steps, whose quotients must stay finite.
        h = jnp.where(h == 0, float(jnp.finfo(dtype).tiny) ** 0.25, h)
        tolerances = (jnp.asarray(self.rtol, dtype), jnp.asarray(self.atol, dtype))
        autonomous = is_autonomous(terms.vf, t0, y0, args)
        kept = jnp.where(jnp.asarray(made_jump) | (not autonomous), 0, state.kept)
        operands = (vf, t0, t1 - t0, h, y0, args, f0, *tolerances, state.first, state.small, kept)
        k, basis = _run(operands, most=self._most(y0), accuracy=self.accuracy, autonomous=autonomous)
        few = state.small.shape[0]
        y1 = la.add(y0, k.point)
        # a NaN elsewhere reaches the error estimate
        refused = k.failed | ~_tree.all_finite(k.field)
        error = jtu.tree_map(lambda e: jnp.where(refused, jnp.inf, e), k.rest)
        after = EXPRBState(
            f0=k.field,
            basis_size=k.size,
            gradients=state.gradients + k.evaluations + extra,
            krylov_gradients=state.krylov_gradients + k.size - kept,
            first=jtu.tree_map(lambda v: v[:few], basis),
            small=k.small[:few, :few],
            kept=jnp.zeros_like(state.kept),
        )
        dense_info = dict(y0=y0, y1=y1, within=k.within)
        return y1, error, dense_info, after, refusal(refused)

    def rejected(self, before: EXPRBState, attempted: EXPRBState) -> EXPRBState:
        """State from which to retry a step: what the attempt cost is kept, and its first vectors.

        All but the last, whose product with the Jacobian the next attempt makes again.
        """
        kept = jnp.clip(attempted.basis_size - 1, 0, attempted.small.shape[0] - 1)
        kept = jnp.where(_tree.all_finite(attempted.small), kept, 0)  # a NaN in a vector shows in its product
        return eqx.tree_at(lambda s: (s.f0, s.kept), attempted, (before.f0, kept.astype(before.kept.dtype)))

    def func(self, terms, t0, y0, args):
        """The vector field."""
        return terms.vf(t0, y0, args)
