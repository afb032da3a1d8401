"""What the theory says, computed without gflow: closed forms, quadrature, convex programs.

Everything here is NumPy, SciPy and cvxpy in float64. Inputs and outputs are NumPy arrays.
"""

from collections.abc import Callable

import cvxpy
import numpy as np
import scipy.integrate
import scipy.optimize

Vector = np.ndarray
Matrix = np.ndarray


# The toy model σ' = σ^{2−2/N} (σ* − σ) ------------------------------------------------------------


def toy_value(depth: int, t: Vector, start: float, target: float) -> Vector:
    """σ(t) of the toy model of depth 1 or 2."""
    if depth == 1:
        return target + (start - target) * np.exp(-t)
    assert depth == 2, "only depths 1 and 2 can be solved for σ"
    return start * target / (start + (target - start) * np.exp(-target * t))


def toy_time(depth: float, sigma: Vector, start: float, target: float) -> Vector:
    """When σ is reached from `start`: in closed form for N = 3 and ∞, else by quadrature in log σ."""
    if depth == 3:
        a = np.cbrt(target)

        def primitive(s):
            w = np.cbrt(s)
            arc = np.sqrt(3) * np.arctan((2 * w + a) / (np.sqrt(3) * a))
            logs = -np.log(a - w) + np.log(w**2 + a * w + a**2) / 2
            return 3 / a**3 * (-1 / w + (logs - arc) / (3 * a))

        return primitive(sigma) - primitive(start)
    if depth == np.inf:
        logs = np.log(sigma * (target - start) / (start * (target - sigma)))
        return logs / target**2 - (1 / sigma - 1 / start) / target
    rate = lambda u: np.exp(u * (2 / depth - 1)) / (target - np.exp(u))
    integral = lambda s: scipy.integrate.quad(
        rate, np.log(start), np.log(s), epsabs=0, epsrel=1e-12, limit=500
    )
    return np.array([integral(s)[0] for s in np.atleast_1d(sigma)])


def toy_path(depth: float, t: Vector, start: float, target: float) -> Vector:
    """σ(t) of the toy model of any depth, integrated by SciPy."""
    rate = lambda _, s: s ** (2 - 2 / depth) * (target - s)
    path = scipy.integrate.solve_ivp(
        rate, (0, t[-1]), [start], method="LSODA", t_eval=t, rtol=1e-12, atol=1e-13 * start
    )
    assert path.success, path.message
    return path.y[0]


def quadratic_path(t: Vector, start: float, targets: Vector) -> Matrix:
    """Eigenvalues of a quadratic network without bias, σᵢ' = σᵢ [(σᵢ*−σᵢ) + ½ Σⱼ (σⱼ*−σⱼ)], one row a time."""
    rate = lambda _, s: s * (targets - s + np.sum(targets - s) / 2)
    start_all = np.full(len(targets), start)
    path = scipy.integrate.solve_ivp(
        rate, (0, t[-1]), start_all, method="LSODA", t_eval=t, rtol=1e-12, atol=1e-13 * start
    )
    assert path.success, path.message
    return path.y.T


def toy_threshold(ratio: float, depth: float, s: float, f: float) -> float:
    """log x_th of (s, f)-incremental learning of two values with targets r and 1, by root finding.

    Times are integrated in log u; the smaller value needs from x to s as long as the larger one from x to rf.
    """
    p = 1 - 2 / depth

    def integral(rate, low, high):
        pieces = np.linspace(low, high, max(int(high - low), 1) + 1)
        quad = lambda a, b: scipy.integrate.fixed_quad(rate, a, b, n=30)[0]
        return sum(quad(a, b) for a, b in zip(pieces[:-1], pieces[1:], strict=True))

    # the time difference of two integrals over the same interval, taken as one integral
    ahead = lambda u: (ratio - 1) * np.exp(-p * u) / ((1 - np.exp(u)) * (ratio - np.exp(u)))
    needed = integral(lambda u: np.exp(-p * u) / (ratio - np.exp(u)), np.log(s), np.log(ratio * f))
    excess = lambda log_x: integral(ahead, log_x, np.log(s)) - needed
    low = np.log(s) - 1.0
    while excess(low) < 0:
        low = np.log(s) - 2 * (np.log(s) - low)
    return float(scipy.optimize.brentq(excess, low, np.log(s), xtol=1e-13, rtol=1e-14))


# Regression: linear, and in the geometry of a potential -------------------------------------------


def least_squares_path(x: Matrix, y: Vector, start: Vector, t: Vector) -> Matrix:
    """w(t) of w' = −Xᵀ(Xw − y), one row for each time."""
    values, u = np.linalg.eigh(x @ x.T)
    weights = -np.expm1(-np.outer(t, values)) / values
    return start + (weights * (u.T @ (y - x @ start))) @ u.T @ x


def closest(x: Matrix, y: Vector, start: Vector) -> Vector:
    """The solution of Xw = y closest to `start`."""
    return start + np.linalg.lstsq(x, y - x @ start, rcond=None)[0]


def dual_newton(
    x: Matrix,
    y: Vector,
    inverse: Callable[[Vector], Vector],
    slope: Callable[[Vector], Vector],
    conjugate: Callable[[Vector], Vector],
    start: Vector | float = 0.0,
    reach: float = np.inf,
) -> Vector:
    """The w = h(z₀ + Xᵀν) with Xw = y, by damped Newton steps on the convex dual Σ H(z₀ + Xᵀν) − y·ν.

    `inverse`, `slope`, `conjugate` are h, h' and H with H' = h, on |z| < `reach`, and z₀ is `start`.
    It is what a mirror flow converges to, and found without integrating anything.
    """
    nu = np.zeros(len(y))
    z0 = np.broadcast_to(start, x.shape[1])
    for _ in range(500):
        z = z0 + x.T @ nu
        residual = x @ inverse(z) - y
        if np.abs(residual).max() < 1e-14 * np.abs(y).max():
            break
        step = np.linalg.lstsq((x * slope(z)) @ x.T, residual, rcond=None)[0]
        move = x.T @ step

        def rises(damping, z=z, move=move, step=step):  # or leaves the domain
            if np.abs(z - damping * move).max() >= reach:
                return True
            return np.sum(conjugate(z - damping * move) - conjugate(z)) + damping * (y @ step) > 0

        damping = min(1.0, 1 / np.abs(move).max())
        while rises(damping) and damping > 1e-15:
            damping /= 2
        if damping <= 1e-15:  # the dual can't be resolved any finer: a plain Newton step
            damping = 1.0 if np.abs(z - move).max() < reach and np.abs(move).max() < 1e-3 else 0.0
        nu = nu - damping * step
    w = inverse(z0 + x.T @ nu)
    assert np.abs(x @ w - y).max() < 1e-10 * np.abs(y).max(), "the dual Newton method did not converge"
    return w


def hypentropy_limit(x: Matrix, y: Vector, scale: float, start: Vector | float = 0.0) -> Vector:
    """w = k sinh(z₀ + Xᵀν) with Xw = y, k = `scale`, which is 2α² for w = u² − v² from u = v = α."""
    return dual_newton(
        x,
        y,
        lambda z: scale * np.sinh(z),
        lambda z: scale * np.cosh(z),
        lambda z: scale * np.cosh(z),
        start=start,
    )


def deep_hypentropy_limit(x: Matrix, y: Vector, alpha: float, depth: int) -> Vector:
    """w = αᴰ [(1−z)^{−q} − (1+z)^{−q}], z = Xᵀν, q = D/(D−2), with Xw = y: the limit of uᴰ − vᴰ from α."""
    q, c = depth / (depth - 2), alpha**depth
    return dual_newton(
        x,
        y,
        lambda z: c * ((1 - z) ** -q - (1 + z) ** -q),
        lambda z: c * q * ((1 - z) ** (-q - 1) + (1 + z) ** (-q - 1)),
        lambda z: c / (q - 1) * ((1 - z) ** (1 - q) + (1 + z) ** (1 - q)),
        reach=1.0,
    )


def smallest_l1(x: Matrix, y: Vector) -> Vector:
    """argmin ‖w‖₁ subject to Xw = y, as a linear program in w₊ and w₋."""
    found = scipy.optimize.linprog(np.ones(2 * x.shape[1]), A_eq=np.hstack([x, -x]), b_eq=y)
    assert found.status == 0, found.message
    return found.x[: x.shape[1]] - found.x[x.shape[1] :]


def kl_projection(x: Matrix, y: Vector, start: Vector) -> Vector:
    """argmin KL(w, start) subject to Xw = y, which is start ⊙ exp(Xᵀν)."""
    return dual_newton(x, y, np.exp, np.exp, np.exp, start=np.log(start))


def smallest_frequency_l1(x: Matrix, y: Vector) -> float:
    """min Σₖ |ŵₖ| over Xw = y for the unitary discrete Fourier transform ŵ, a second-order cone program."""
    import cvxpy as cp

    d = x.shape[1]
    fourier = np.fft.fft(np.eye(d), norm="ortho")
    w = cp.Variable(d)
    parts = cp.vstack([fourier.real @ w, fourier.imag @ w])
    problem = cp.Problem(cp.Minimize(cp.sum(cp.norm(parts, 2, axis=0))), [x @ w == y])
    return float(problem.solve(solver=cp.CLARABEL))


def smallest_trace(matrices: np.ndarray, y: Vector) -> tuple[float, Matrix]:
    """min tr X over positive semidefinite X with ⟨Aᵢ, X⟩ = yᵢ, and such an X; a semidefinite program."""
    import cvxpy as cp

    x = cp.Variable(matrices.shape[1:], PSD=True)
    constraints = [cp.sum(cp.multiply(a, x)) == b for a, b in zip(matrices, y, strict=True)]
    problem = cp.Problem(cp.Minimize(cp.trace(x)), constraints)
    return float(problem.solve(solver=cp.CLARABEL)), x.value


def hidden_entry_path(t: Vector, start: float) -> Vector:
    """W₁₁(t) of W = UUᵀ, 2×2, from U = `start`·I, for L = ½ Σ residual² on W₁₂ = W₂₁ = 1 and W₂₂ = 0.

    W' = −(GW + WG) is integrated in W₁₁, W₁₂ and log det W, so that no rounding can flip the sign of det W.
    """

    def rate(_, state):
        w11, w12, log_det = state
        w22 = (np.exp(log_det) + w12**2) / w11
        return [-2 * (w12 - 1) * w12, -(w12 - 1) * (w11 + w22) - w12 * w22, -2 * w22]

    state = [start**2, 0.0, 4 * np.log(start)]
    path = scipy.integrate.solve_ivp(
        rate, (0, t[-1]), state, method="Radau", t_eval=t, rtol=1e-11, atol=1e-14
    )
    assert path.success, path.message
    return path.y[0]


# Regression: tangent kernels, single neurons, penalties -----------------------------------------------


def tangent_kernel(w: Matrix, v: Vector, x: Matrix, other: Matrix) -> Matrix:
    """⟨∇f(x), ∇f(x')⟩ of f(x) = v·tanh(Wx)/√m, by hand."""
    ours, theirs = np.tanh(x @ w.T), np.tanh(other @ w.T)
    inner = ((1 - ours**2) * v**2) @ (1 - theirs**2).T * (x @ other.T)
    return (ours @ theirs.T + inner) / len(v)


def kernel_path(kernel: Matrix, towards: Matrix, y: Vector, t: Vector) -> Matrix:
    """Predictions k(x', X) K⁻¹ (1 − e^{−Kt}) y of kernel gradient flow from 0, one row for each time.

    `kernel` is K = k(X, X), and `towards` is k(x', X).
    """
    values, u = np.linalg.eigh(kernel)
    weights = -np.expm1(-np.outer(t, values)) / values
    return (weights * (u.T @ y)) @ (towards @ u).T


def soft_thresholded(matrix: Matrix, decay: float) -> Matrix:
    """argmin ½‖W − M‖² + λ‖W‖_*: the singular values of M, each less by λ, down to 0."""
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u * np.maximum(values - decay, 0)) @ vt


def penalised_power(m: Vector, decay: float, depth: int) -> Vector:
    """The local minimum β ≥ 0 of ½(β − mᵢ)² + λ(D/2) β^{2/D} closest to mᵢ, for mᵢ > 0 and D ≥ 2.

    It is the largest root of β − m + λβ^{2/D−1}, which is convex in β > 0, and 0 if there is none.
    """
    found = np.zeros(len(m))
    for i, target in enumerate(m):
        slope = lambda b, target=target: b - target + decay * b ** (2 / depth - 1)
        # where the slope is least
        least = (decay * (1 - 2 / depth)) ** (depth / (2 * depth - 2)) if depth > 2 else 0.0
        if least < target and slope(least) < 0:
            found[i] = scipy.optimize.brentq(slope, least, target, xtol=1e-15)
    return found


def penalised_relu(x: Matrix, y: Vector, decay: float) -> float:
    """min ½ Σ (f(xᵢ) − yᵢ)² + (λ/2) ‖θ‖² over two-layer ReLU networks of any width, x in the plane.

    It is a convex program with two vectors for each pattern of the neurons that are on (Pilanci and
    Ergen, ICML 2020); in the plane all patterns are found by turning a direction once around.
    """
    normals = np.arctan2(x[:, 1], x[:, 0])
    turns = np.sort(np.concatenate([normals + np.pi / 2, normals - np.pi / 2]) % (2 * np.pi))
    middles = (turns + np.append(turns[1:], turns[0] + 2 * np.pi)) / 2
    patterns = np.array([x @ [np.cos(a), np.sin(a)] > 0 for a in middles], float)
    up, down = cvxpy.Variable((len(patterns), 2)), cvxpy.Variable((len(patterns), 2))
    outputs = sum(cvxpy.multiply(p, x @ (up[i] - down[i])) for i, p in enumerate(patterns))
    sides = [(2 * p - 1)[:, None] * x for p in patterns]
    inside = [s @ v[i] >= 0 for i, s in enumerate(sides) for v in (up, down)]
    norms = cvxpy.sum(cvxpy.norm(up, axis=1)) + cvxpy.sum(cvxpy.norm(down, axis=1))
    program = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(outputs - y) / 2 + decay * norms), inside)
    return float(program.solve(solver="CLARABEL"))


def inverse_of(increasing: Callable[[Vector], Vector], y: Vector) -> Vector:
    """The z with σ(z) = y for a strictly increasing σ, entry by entry by root finding."""
    return np.array([scipy.optimize.brentq(lambda z, v=v: increasing(z) - v, -50, 50, xtol=1e-15) for v in y])


def neuron_limit(x: Matrix, y: Vector, start: Vector) -> Vector:
    """argmin ‖β‖^{3/2} − ∇‖β₀‖^{3/2}·β subject to Xβ = y, by Newton steps on the convex dual.

    The gradient (3/2)‖β‖^{−1/2}β of the potential is z where β = (4/9)‖z‖z.
    """
    z0 = 1.5 * start / np.sqrt(np.linalg.norm(start))

    def dual(nu):
        z = z0 + x.T @ nu
        size = np.linalg.norm(z)
        return 4 / 27 * size**3 - y @ nu, x @ z * size * 4 / 9 - y

    def curvature(nu):
        z = z0 + x.T @ nu
        size = np.linalg.norm(z)
        along = x @ z
        return 4 / 9 * (size * x @ x.T + np.outer(along, along) / size)

    value = scipy.optimize.minimize(dual, np.zeros(len(y)), jac=True, hess=curvature, method="trust-exact")
    found = scipy.optimize.root(lambda nu: dual(nu)[1], value.x, jac=curvature, tol=1e-15)
    z = z0 + x.T @ found.x
    beta = 4 / 9 * np.linalg.norm(z) * z
    assert np.abs(x @ beta - y).max() < 1e-10 * np.abs(y).max(), "the dual Newton method did not converge"
    return beta


def shortest_relu(x: Matrix, y: Vector) -> Vector:
    """argmin ‖w‖ subject to relu(Xw) = y: equalities where y > 0, and Xw ≤ 0 where y = 0."""
    w, on = cvxpy.Variable(x.shape[1]), y > 0
    limits = [x[on] @ w == y[on]] + ([x[~on] @ w <= 0] if np.any(~on) else [])
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(w)), limits).solve(solver="CLARABEL")
    return w.value
