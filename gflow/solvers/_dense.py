"""An exponential Rosenbrock solver for problems so small that the Jacobian can be formed."""

from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int

from . import _linalg as la
from ._abstract import AbstractFlowSolver, check_real
from ._linalg import Vector
from ._phi import general_phi, matrix_phis
from ._quintic import WITHIN, QuinticInterpolation, with_bend


class DenseState(eqx.Module):
    """Solver state; the counts are running totals over the solve."""

    f0: Vector
    gradients: Int[Array, ""]  # all evaluations of the vector field
    hvps: Int[Array, ""]  # all products with its Jacobian


class EXPRB43(AbstractFlowSolver):
    r"""Exponential Rosenbrock method of order 4, with the Jacobian as a matrix.

    With $F = f(y_0)$, $J = f'(y_0)$ and $D_i = f(U_i) - F - J (U_i - y_0)$:

    $$U_2 = y_0 + \tfrac h2 \varphi_1(\tfrac h2 J) F, \qquad
      U_3 = y_0 + h \varphi_1(hJ) (F + D_2),$$

    $$y_1 = y_0 + h \varphi_1(hJ) F + h (16 \varphi_3 - 48 \varphi_4)(hJ) D_2
          + h (-2 \varphi_3 + 12 \varphi_4)(hJ) D_3 ,$$

    and the terms with $\varphi_4$ estimate the error of the embedded method of order 3. A-stable, and exact
    for linear problems. A field that depends on time is taken together with the equation $t' = 1$.

    For a few hundred unknowns at most: a step costs 3 gradients and as many products with the Jacobian as
    there are unknowns, the $\varphi$ functions of a matrix, and memory for some ten matrices. In return the
    number of steps hardly depends on the stiffness, nor on the horizon once the solution has become straight.
    Dense output is that of [`EXPRB42`][gflow.solvers.EXPRB42], and counts in the error as it does there.

    **Arguments:** `symmetric` promises that the Jacobian is a symmetric matrix, as that of gradient flow is,
    so that the $\varphi$ functions come from its eigenvalues, which is cheaper. If it is not, the method is
    of lower order, and the error estimate shortens the step.

    ??? cite "Reference"

        Hochbruck, Ostermann, Schweitzer: Exponential Rosenbrock-type methods. SIAM Journal on
        Numerical Analysis 47 (2009) 786-803.
    """

    symmetric: bool = eqx.field(static=True, default=False)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.AbstractLocalInterpolation]] = QuinticInterpolation

    def order(self, terms):
        """4"""
        del terms
        return 4

    def error_order(self, terms):
        """4: the error estimated is that of the embedded method of order 3."""
        del terms
        return 4

    def tolerances(self, rtol, atol):
        """Themselves: the delivered error is proportional to them."""
        return rtol, atol

    def prepared(self, rtol, atol):
        """Itself: the tolerances don't matter to it."""
        del rtol, atol
        return self

    def init(self, terms, t0, t1, y0, args) -> DenseState:
        """The state before the first step: one evaluation."""
        del t1
        check_real(y0, "EXPRB43")
        count = jnp.zeros((), jnp.int32)
        return DenseState(la.field(terms.vf, t0, y0, args), count + 1, count)

    def step(self, terms, t0, t1, y0, args, solver_state: DenseState, made_jump):
        """One step from `t0` to `t1`, as diffrax asks for it."""
        state = solver_state
        t0, t1 = la.as_time(t0), la.as_time(t1)
        dtype = la.real_dtype(y0)
        # backwards diffrax turns the time round, so that its `span` is positive and the step `h` negative
        h, span = jnp.asarray(terms.contr(t0, t1), dtype), t1 - t0
        start, unravel = ravel_pytree(y0)
        f0, extra = state.f0, 0
        if made_jump is not False:
            jump = jnp.asarray(made_jump)
            f0 = jax.lax.cond(jump, lambda: la.field(terms.vf, t0, y0, args), lambda: state.f0)
            extra = jump.astype(jnp.int32)

        def field(t, y):
            return ravel_pytree(la.field(terms.vf, t, unravel(y), args))[0]

        with jax.default_matmul_precision("highest"):
            slope = ravel_pytree(f0)[0]
            drift, jacobian = jax.jacfwd(field, argnums=(0, 1))(t0, start)
            drift = jnp.asarray(span, dtype) * drift.astype(dtype)
            parts = (*WITHIN, 1.0)
            shares = jnp.asarray(parts, dtype)[:, None]
            if self.symmetric:  # by this one the remainder is taken as well, so that a broken promise shows
                jacobian = (jacobian + jacobian.T) / 2
                phis = matrix_phis(h * jacobian, parts)
            else:
                phis = jax.vmap(general_phi, out_axes=1)(h * shares[..., None] * jacobian)
            half, last = phis[:, parts.index(0.5)], phis[:, -1]

            def remainder(share, change):
                there = field(t0 + jnp.asarray(share * span, t0.dtype), start + change)
                return there - slope - jacobian @ change - share * drift

            u2 = h / 2 * (half[0] @ slope + half[1] @ drift / 2)
            d2 = remainder(0.5, u2)
            straight = h * (shares * (phis[0] @ slope) + shares**2 * (phis[1] @ drift))
            d3 = remainder(1.0, straight[-1] + h * (last[0] @ d2))
            cubic = 12 * h * shares**4 * (phis[3] @ (d3 - 4 * d2))
            changes = straight + 2 * h * shares**3 * (phis[2] @ (8 * d2 - d3)) + cubic
            rest = with_bend(cubic[-1], changes)
        y1 = unravel(start + changes[-1])
        f1 = la.field(terms.vf, t1, y1, args)
        after = DenseState(f1, state.gradients + 3 + extra, state.hvps + start.size)
        dense_info = dict(y0=y0, y1=y1, within=jax.vmap(unravel)(changes[:-1]))
        return y1, unravel(rest), dense_info, after, dfx.RESULTS.successful

    def rejected(self, before: DenseState, attempted: DenseState) -> DenseState:
        """State from which to retry a step: what the attempt cost is kept."""
        return eqx.tree_at(lambda s: s.f0, attempted, before.f0)

    def func(self, terms, t0, y0, args):
        """The vector field."""
        return terms.vf(t0, y0, args)
