"""An exponential Rosenbrock solver whose functions of the Jacobian come from Lanczos."""

from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int

from . import _linalg as la
from ._abstract import AbstractFlowSolver
from ._linalg import Scalar, Vector
from ._phi import matrix_phi


class EXPRBState(eqx.Module):
    """Solver state; the counts are running totals over the solve."""

    f0: Vector
    basis_size: Int[Array, ""]  # Krylov dimension of the last step
    gradients: Int[Array, ""]  # all evaluations of the vector field
    krylov_gradients: Int[Array, ""]  # of these, the ones made for products with the Jacobian


class _Krylov(eqx.Module):
    """Carry of the loop of a step: a Lanczos phase, the stage, the end point."""

    phase: Int[Array, ""]  # 0 time derivative, 1 Lanczos, 2 stage, 3 end point
    point: Vector  # where the field is evaluated next, relative to y0
    field: Vector
    drift: Vector  # time derivative of the field
    basis: Vector  # leading axis: basis vectors, zero from `size` on
    small: Float[Array, "m m"]  # the Jacobian on the basis
    beta: Scalar
    following: Vector  # next basis vector
    size: Int[Array, ""]
    phis: Float[Array, "4 m m"]
    rest: Vector  # error estimate
    remainder: Vector
    evaluations: Int[Array, ""]
    failed: Array


def _apply(basis: Vector, c) -> Vector:
    """Linear combination of the basis vectors."""
    return jtu.tree_map(lambda v: jnp.tensordot(c.astype(v.dtype), v, axes=1), basis)


def _project(basis: Vector, x: Vector):
    """Inner products with the basis vectors."""
    parts = jtu.tree_map(lambda v, y: v.reshape(v.shape[0], -1) @ y.reshape(-1), basis, x)
    first, *others = jtu.tree_leaves(parts)
    return sum(others, first)


def _leading_phi(a: Float[Array, "m m"], size: Int[Array, ""]) -> Float[Array, "4 m m"]:
    """`matrix_phi` of the leading block of that size, for the price of a block not much larger."""
    most = a.shape[0]
    sizes = [n for n in (8, 16) if n < most] + [most]

    def of(n):
        return lambda: jnp.zeros((4, most, most), a.dtype).at[:, :n, :n].set(matrix_phi(a[:n, :n]))

    return jax.lax.switch(jnp.searchsorted(jnp.asarray(sizes), size), [of(n) for n in sizes])


def _loop(operands, *, most: int, accuracy: float, autonomous: bool, kind, node=1.0) -> _Krylov:
    vf, t0, h, y0, args, f0, rtol, atol = operands
    dtype = la.real_dtype(y0)
    eps = float(jnp.finfo(dtype).eps)
    length = la.norm(f0)
    flat = length == 0
    start = la.scale(jnp.where(flat, 0, 1 / jnp.where(flat, 1, length)), f0)
    displacement = jax.lax.stop_gradient(la.difference_step(y0))
    zero = la.scale(0, y0)
    weights = jax.lax.stop_gradient(jtu.tree_map(lambda y: 1 / (atol + rtol * jnp.abs(y)), y0))
    # The displacement in time is a fraction of the step, like that in space of the solution.
    delay = eps**0.4 * h

    def leave(k: _Krylov):
        """From the Lanczos phase to the stage `U = y + h phi_1(hJ) F (+ h² phi_2(hJ) f_t)`."""
        part = k.phis if node == 1 else _leading_phi(node * h * k.small, k.size)
        c = node * h * part[0][:, 0] * length
        stage = _apply(k.basis, c)
        if not autonomous:
            v = _project(k.basis, k.drift)
            outside = la.sub(k.drift, _apply(k.basis, v))
            stage = la.axpy((node * h)**2 / 2, outside, la.add(stage, _apply(k.basis, (node * h)**2 * (part[1] @ v))))
        return eqx.tree_at(lambda q: (q.phase, q.point), k, (jnp.asarray(2), stage))

    def lanczos(k: _Krylov, field):
        w = la.scale(1 / displacement, la.sub(field, f0))
        v = k.following
        m = k.size
        basis = jtu.tree_map(lambda b, x: b.at[m].set(x), k.basis, v)
        # Twice is enough.
        a = _project(basis, w)
        w = la.sub(w, _apply(basis, a))
        again = _project(basis, w)
        w = la.sub(w, _apply(basis, again))
        alpha = jnp.take(a + again, m)
        link = jnp.where(m > 0, k.beta, 0)
        small = k.small.at[m, m].set(alpha)
        small = small.at[m, m - 1].add(link).at[m - 1, m].add(link)
        beta = la.norm(w)
        size = m + 1
        phis = _leading_phi(h * small, size)
        # Residual of the Krylov approximation of h phi_1(hJ) F.
        residual = h**2 * length * beta * jnp.abs(phis[1][m, 0])
        breakdown = beta <= 100 * eps * jnp.max(jnp.abs(small))
        # of rounding errors alone where the basis is complete
        direction = la.scale(jnp.where(breakdown, 0, 1 / jnp.where(breakdown, 1, beta)), w)
        weighted = la.norm(jtu.tree_map(jnp.multiply, weights, la.stop_gradient(direction)))
        weighted = weighted / max(la.size(y0), 1) ** 0.5
        settled = (residual * weighted <= accuracy) | breakdown | flat
        full = size >= most
        failed = (full & ~settled) | ~jnp.isfinite(beta)
        k = eqx.tree_at(
            lambda q: (q.basis, q.small, q.beta, q.following, q.size, q.phis, q.failed, q.point),
            k,
            (basis, small, beta, direction, size, phis, k.failed | failed,
             la.scale(displacement, direction)),
        )  # fmt: skip
        return jax.lax.cond(settled & ~failed, leave, lambda q: q, k)

    def remainder(k: _Krylov, field, c):
        """`D = f(Y) - F - J (Y - y) - c h f_t` at the point `Y` where the field was evaluated, at t + c h."""
        inside = _project(k.basis, k.point)
        last = jnp.arange(most) == k.size - 1
        part = k.phis if c == 1 else _leading_phi(c * h * k.small, k.size)
        own = c * h * part[0][:, 0] * length
        jacobian = la.axpy(
            k.beta * jnp.sum(jnp.where(last, own, 0)),
            k.following,
            _apply(k.basis, k.small @ inside),
        )
        d = la.sub(la.sub(field, f0), jacobian)
        return d if autonomous else la.axpy(-c * h, k.drift, d)

    def phi3(k, x):
        d = _project(k.basis, x)
        outside = la.sub(x, _apply(k.basis, d))
        return la.axpy(1 / 6, outside, _apply(k.basis, k.phis[2] @ d))

    def finish(k: _Krylov, field):
        D = remainder(k, field, node)
        rest = la.scale(2 * h / node**2, phi3(k, D))
        base = _apply(k.basis, h * k.phis[0][:, 0] * length)
        if not autonomous:
            v = _project(k.basis, k.drift)
            outside = la.sub(k.drift, _apply(k.basis, v))
            base = la.axpy(h**2 / 2, outside, la.add(base, _apply(k.basis, h**2 * (k.phis[1] @ v))))
        return eqx.tree_at(
            lambda q: (q.phase, q.point, q.rest, q.remainder), k, (jnp.asarray(3), la.add(base, rest), rest, D)
        )

    def close(k, field):
        rest = k.rest
        if node != 1:
            D3 = remainder(k, field, 1)
            rest = la.scale(2 * h, phi3(k, la.axpy(-1 / node**2, k.remainder, D3)))
        return eqx.tree_at(lambda q: (q.phase, q.field, q.rest), k, (jnp.asarray(4), field, rest))

    def body(k: _Krylov):
        late = jnp.where(k.phase == 2, node, jnp.where(k.phase == 3, 1, 0)).astype(dtype)
        t = t0 + jnp.where(k.phase == 0, delay, late * h).astype(jnp.result_type(t0))
        field = la.field(vf, t, la.add(y0, k.point), args)
        k = eqx.tree_at(lambda q: q.evaluations, k, k.evaluations + 1)

        def derivative(k):
            drift = la.scale(1 / delay, la.sub(field, f0))
            point = la.scale(displacement, k.following)
            return eqx.tree_at(lambda q: (q.phase, q.drift, q.point), k, (jnp.asarray(1), drift, point))

        return jax.lax.switch(
            k.phase,
            [
                derivative,
                lambda k: lanczos(k, field),
                lambda k: finish(k, field),
                lambda k: close(k, field),
            ],
            k,
        )

    count = jnp.zeros((), jnp.int32)
    number = jnp.zeros((), dtype)
    first = _Krylov(
        phase=jnp.asarray(1 if autonomous else 0),
        point=la.scale(displacement, start) if autonomous else zero,
        field=f0, drift=zero,
        basis=jtu.tree_map(lambda y: jnp.zeros((most, *y.shape), y.dtype), y0),
        small=jnp.zeros((most, most), dtype), beta=number, following=start, size=count,
        phis=jnp.zeros((4, most, most), dtype), rest=zero, remainder=zero, evaluations=count,
        failed=jnp.asarray(False),
    )  # fmt: skip
    return eqxi.while_loop(lambda k: (k.phase < 4) & ~k.failed, body, first, max_steps=most + 4, kind=kind)


@eqx.filter_custom_jvp
def _run(operands, *, most, accuracy, autonomous, node):
    return _loop(operands, most=most, accuracy=accuracy, autonomous=autonomous, kind="lax", node=node)


@_run.def_jvp
def _run_jvp(primals, tangents, *, most, accuracy, autonomous, node):
    def run(operands):
        return _loop(operands, most=most, accuracy=accuracy, autonomous=autonomous, kind="bounded", node=node)

    return eqx.filter_jvp(run, primals, tangents)


def _autonomous(vf, t0, y0, args) -> bool:
    """Whether the field's program never reads the time."""
    arrays, static = eqx.partition((y0, args), eqx.is_array)

    def field(t, arrays):
        y, a = eqx.combine(arrays, static)
        return vf(t, y, a)

    jaxpr = jax.make_jaxpr(field)(jnp.asarray(t0, jnp.result_type(float)), arrays).jaxpr
    time = jaxpr.invars[0]
    used = any(v is time for equation in jaxpr.eqns for v in equation.invars)
    return not (used or any(v is time for v in jaxpr.outvars))


class EXPRB32(AbstractFlowSolver):
    r"""Exponential Rosenbrock method of order 3, matrix-free, for symmetric Jacobians.

    With $F = f(y_0)$, $J = f'(y_0)$:

    $$U = y_0 + h \varphi_1(hJ) F, \qquad D = f(U) - F - J (U - y_0), \qquad
      y_1 = U + 2 h \varphi_3(hJ) D ,$$

    and $y_1 - U$ estimates the error of the embedded method of order 2. A-stable; exact for linear
    problems. For a field that depends on time, $h^2 \varphi_2(hJ)\, \partial_t f$ is added to $U$.

    $\varphi_1(hJ) F$ is taken from a Lanczos process started with $F$, fully reorthogonalised,
    whose products with $J$ are difference quotients (one gradient each), and which stops when the
    residual, over `atol` $+$ `rtol` $|y_0|$, has a root mean square below `accuracy`. $J(U - y_0)$ then
    costs nothing, and $\varphi_3(hJ) D$ reuses the space: the part of $D$ outside it is multiplied
    by $\varphi_3(0)$. A step costs $m + 2$ gradients (one more if the field depends on time), $m$
    being the Krylov dimension: small where a few large eigenvalues stand apart from the rest,
    growing like $\sqrt{h\rho}$ where they don't. A step that would need more than `max_basis`
    vectors is refused, and the step size controller shortens it.

    `rtol` and `atol` should be those of the step size controller.
    Memory: `max_basis` parameter vectors. Dense output is cubic Hermite.

    The Jacobian must be symmetric. If it is not, the method is of lower order and the error
    estimate shortens the step.

    ??? cite "References"

        Hochbruck, Ostermann, Schweitzer: Exponential Rosenbrock-type methods. SIAM Journal on
        Numerical Analysis 47 (2009) 786-803.
        Saad: Analysis of some Krylov subspace approximations to the matrix exponential operator.
        SIAM Journal on Numerical Analysis 29 (1992) 209-228.
    """

    rtol: Scalar | float = 1e-4
    atol: Scalar | float = 1e-7
    max_basis: int = eqx.field(static=True, default=40)
    accuracy: float = eqx.field(static=True, default=0.1)
    node: float = eqx.field(static=True, default=1.0)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.AbstractLocalInterpolation]] = (
        dfx.ThirdOrderHermitePolynomialInterpolation
    )

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
        return 3 if self.node == 1 else 4

    def tolerances(self, rtol, atol):
        """Themselves: the delivered error is proportional to them."""
        return rtol, atol

    def prepared(self, rtol, atol) -> "EXPRB32":
        """The same solver with the tolerances of the controller."""
        # arrays, so that other tolerances are not another program
        return eqx.tree_at(lambda s: (s.rtol, s.atol), self, (jnp.asarray(rtol), jnp.asarray(atol)))

    def init(self, terms, t0, t1, y0, args) -> EXPRBState:
        """The state before the first step: one evaluation."""
        del t1
        count = jnp.zeros((), jnp.int32)
        f0 = la.field(terms.vf, t0, y0, args)
        return EXPRBState(f0, count, count + 1, count)

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
        operands = (vf, t0, h, y0, args, f0, *tolerances)
        k = _run(
            operands,
            most=min(self.max_basis, max(la.size(y0), 1)),
            accuracy=self.accuracy,
            autonomous=_autonomous(terms.vf, t0, y0, args),
            node=self.node,
        )
        y1 = la.add(y0, k.point)
        error = jtu.tree_map(lambda e: jnp.where(k.failed, jnp.inf, e), k.rest)
        after = EXPRBState(
            f0=k.field,
            basis_size=k.size,
            gradients=state.gradients + k.evaluations + extra,
            krylov_gradients=state.krylov_gradients + k.size,
        )
        dense_info = dict(y0=y0, y1=y1, k0=la.scale(h, f0), k1=la.scale(h, k.field))
        return y1, error, dense_info, after, dfx.RESULTS.successful

    def rejected(self, before: EXPRBState, attempted: EXPRBState) -> EXPRBState:
        """State from which to retry a step: what the attempt cost is kept."""
        return eqx.tree_at(lambda s: s.f0, attempted, before.f0)

    def func(self, terms, t0, y0, args):
        """The vector field."""
        return terms.vf(t0, y0, args)
