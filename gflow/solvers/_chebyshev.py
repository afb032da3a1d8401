"""Coefficients of the second-order Runge-Kutta-Chebyshev family, one stage at a time.

With `T_j` the Chebyshev polynomials, `w0 = 1 + eps/s²` and `w1 = T'_s(w0)/T''_s(w0)` the stage
polynomials are `P_j(z) = a_j + b_j T_j(w0 + w1 z)`, `b_j = T''_j(w0)/T'_j(w0)²`,
`a_j = 1 - b_j T_j(w0)`; they satisfy a three-term recurrence, so that any number of stages needs
the same small storage. The recurrences below carry differences `T_j - T_{j-1}` because
`w0 - 1` is far below the rounding unit of `w0` in single precision for many stages.
"""

import equinox as eqx
import jax.numpy as jnp

from ._linalg import Scalar

# Damping: 2/13 is the choice of Sommeijer, Shampine and Verwer. |P_s| <= about 1 - eps/3.
DAMPING = 2 / 13
# Length of the real stability interval is close to LENGTH (s² - 1).
LENGTH = 2 / 3 * (1 - 2 / 15 * DAMPING)


def stages_for(z):
    """Smallest number of stages whose stability interval holds `[-z, 0]` (a float, unrounded)."""
    return jnp.maximum(jnp.ceil(jnp.sqrt(1 + z / LENGTH)), 2)


class Coefficients(eqx.Module):
    """What the step from stages `j - 1`, `j` to stage `j + 1` needs."""

    delta: Scalar  # w0 - 1
    w1: Scalar
    value: tuple[Scalar, Scalar]  # T_j and its difference to T_{j-1}
    first: tuple[Scalar, Scalar]  # the same of T'
    second: tuple[Scalar, Scalar]  # the same of T''
    b: tuple[Scalar, Scalar]  # b_j, b_{j-1}
    c: Scalar  # abscissa of stage j

    def next(self):
        """Coefficients `mu, nu, mu~, gamma~` of stage `j + 1`, and the state there."""
        (t, dt), (p, dp), (q, dq) = self.value, self.first, self.second
        dt1 = dt + 2 * self.delta * t
        dp1 = dp + 2 * t + 2 * self.delta * p
        dq1 = dq + 4 * p + 2 * self.delta * q
        t1, p1, q1 = t + dt1, p + dp1, q + dq1
        b1 = q1 / p1**2
        b, b_before = self.b
        mu = 2 * b1 * (1 + self.delta) / b
        nu = -b1 / b_before
        mu_f = 2 * b1 * self.w1 / b
        gamma_f = -(1 - b * t) * mu_f
        c1 = self.w1 * q1 / p1
        after = Coefficients(self.delta, self.w1, (t1, dt1), (p1, dp1), (q1, dq1), (b1, b), c1)
        return (mu, nu, mu_f, gamma_f), after


def start(stages) -> tuple[Scalar, Coefficients]:
    """`mu~_1` and the coefficients at stage 1, for `stages` (a float of the wanted dtype)."""
    delta = DAMPING / stages**2
    w0 = 1 + delta
    sinh = jnp.sqrt(delta * (2 + delta))
    angle = stages * jnp.arcsinh(sinh)
    first = stages * jnp.sinh(angle) / sinh
    second = (stages**2 * jnp.cosh(angle) - w0 * first) / sinh**2
    w1 = first / second
    # T_0, T_1, T_2 = 1, w0, 2 w0² - 1; b_0 = b_1 = b_2 by convention.
    b = 4 / (4 * w0) ** 2
    one, zero = jnp.ones_like(delta), jnp.zeros_like(delta)
    c = (w1 / w0) / (4 * w0)  # c_1 = c_2 / T'_2(w0), which is mu~_1, and c_2 = w1 / w0
    coefficients = Coefficients(delta, w1, (w0, delta), (one, one), (zero, zero), (b, b), c)
    return b * w1, coefficients
