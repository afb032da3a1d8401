"""What the theory says, computed without gflow: closed forms, quadrature, convex programs.

Everything here is NumPy, SciPy and cvxpy in float64. Inputs and outputs are NumPy arrays.
"""

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import scipy.integrate
import scipy.optimize
import scipy.special

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
    """Eigenvalues of a quadratic network without bias, σᵢ' = σᵢ [(σᵢ*−σᵢ) + ½ Σⱼ (σⱼ*−σⱼ)]; a row a time."""
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
    d = x.shape[1]
    fourier = np.fft.fft(np.eye(d), norm="ortho")
    w = cp.Variable(d)
    parts = cp.vstack([fourier.real @ w, fourier.imag @ w])
    problem = cp.Problem(cp.Minimize(cp.sum(cp.norm(parts, 2, axis=0))), [x @ w == y])
    return float(problem.solve(solver=cp.CLARABEL))


def smallest_trace(matrices: np.ndarray, y: Vector) -> tuple[float, Matrix]:
    """min tr X over positive semidefinite X with ⟨Aᵢ, X⟩ = yᵢ, and such an X; a semidefinite program."""
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


def convolutional_limit(x: Vector, y: float, alpha: float) -> Vector:
    """The limit of two circular convolutions from u₁ = αe₁, u₂ = 0 on one example.

    Frequencies decouple: |ŵₖ| = (α²/2) sinh(2ν|x̂ₖ|) with the phase of x̂ₖ, where ν is such that w·x = y.
    """
    spectrum = np.fft.fft(x)
    size, phase = np.abs(spectrum), np.exp(1j * np.angle(spectrum))
    fit = lambda nu: size @ (alpha**2 / 2 * np.sinh(2 * nu * size)) / len(x) - abs(y)
    high = 1.0 / size.max()
    while fit(high) < 0:
        high *= 1.5
    nu = scipy.optimize.brentq(fit, 0, high, xtol=1e-16, rtol=1e-15)
    return np.sign(y) * np.fft.ifft(phase * alpha**2 / 2 * np.sinh(2 * nu * size)).real


# Neurons, weight decay, kernels -------------------------------------------------------------------


def inverse_of(function: Callable[[Vector], Vector], y: Vector) -> Vector:
    """The z with function(z) = y of an increasing function, entry by entry."""
    root = lambda value: scipy.optimize.brentq(
        lambda z: function(z) - value, -1e3, 1e3, xtol=1e-15, rtol=1e-15
    )
    return np.array([root(value) for value in y])


def smallest_relu(x: Matrix, y: Vector) -> Vector:
    """argmin ‖w‖₂ subject to max(Xw, 0) = y ≥ 0: Xw = y where y > 0, and Xw ≤ 0 where y = 0."""
    w = cp.Variable(x.shape[1])
    active = y > 0
    constraints = [x[active] @ w == y[active]] + ([x[~active] @ w <= 0] if np.any(~active) else [])
    cp.Problem(cp.Minimize(cp.sum_squares(w)), constraints).solve(solver=cp.CLARABEL)
    return w.value


def hidden_neuron_limit(x: Matrix, z: Vector, start: Vector) -> Vector:
    """argmin ‖β‖^{3/2} − (3/2) ‖β₀‖^{−1/2} β₀·β subject to Xβ = z, by a root of its dual conditions."""
    dual = lambda nu: 1.5 * start / np.sqrt(np.linalg.norm(start)) + x.T @ nu
    inverse = lambda g: g * np.linalg.norm(g) / 2.25
    found = scipy.optimize.root(lambda nu: x @ inverse(dual(nu)) - z, np.zeros(len(z)), tol=1e-14)
    beta = inverse(dual(found.x))
    assert np.abs(x @ beta - z).max() < 1e-10, found.message
    return beta


def shrunk(matrix: Matrix, by: float) -> Matrix:
    """The singular values less `by`, at least 0: argmin ½‖X − matrix‖² + by · nuclear norm of X."""
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    return (u * np.maximum(values - by, 0)) @ v


def bridge_minimum(y: float, decay: float, depth: int) -> float:
    """The positive local minimum β of ½(β−y)² + decay · (depth/2) β^{2/depth} next to y > 0."""
    slope = lambda b: b - y + decay * b ** (2 / depth - 1)
    # the slope is least where it turns from falling to rising, and has one root beyond
    bend = (decay * (1 - 2 / depth)) ** (1 / (2 - 2 / depth))
    return float(scipy.optimize.brentq(slope, bend, y, xtol=1e-15, rtol=1e-15))


def kernel_flow(features: Matrix, tests: Matrix, y: Vector, t: float) -> Vector:
    """Outputs at time t on test points of the kernel flow from 0, for ½ Σ (f − y)²; rows are features."""
    values, u = np.linalg.eigh(features @ features.T)
    return tests @ features.T @ (u @ (-np.expm1(-values * t) / values * (u.T @ y)))


def random_feature_risks(seed: int, widths: Vector, n: int, d: int, noise: float) -> Vector:
    """Risks on 2000 noiseless points of the smallest least squares solution on random ReLU features."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=d) / np.sqrt(d)
    x, tests = random.normal(size=(n, d)), random.normal(size=(2000, d))
    y = x @ truth + noise * random.normal(size=n)
    w = random.normal(size=(max(widths), d)) / np.sqrt(d)
    phi, phi_tests = np.maximum(x @ w.T, 0), np.maximum(tests @ w.T, 0)
    fits = [np.linalg.pinv(phi[:, :p]) @ y for p in widths]
    return np.array([np.mean((phi_tests[:, : len(v)] @ v - tests @ truth) ** 2) for v in fits])


# Classification: the largest margins, for rows z = y x of the data ---------------------------------


def max_margin(z: Matrix) -> Vector:
    """argmin ½‖w‖₂² subject to Zw ≥ 1, the separator of largest ℓ₂ margin (without a free bias)."""
    w = cp.Variable(z.shape[1])
    _solve(cp.Problem(cp.Minimize(cp.sum_squares(w) / 2), [z @ w >= 1]))
    # to the last digits: the shortest w with margin 1 where the solver found margin 1
    support = z[z @ w.value < 1 + 1e-6]
    exact = np.linalg.lstsq(support, np.ones(len(support)), rcond=None)[0]
    assert np.all(z @ exact > 1 - 1e-9) and np.linalg.norm(exact - w.value) < 1e-5 * np.linalg.norm(exact)
    return exact


def max_margin_in(z: Matrix, order: float) -> Vector:
    """argmin ‖w‖_p subject to Zw ≥ 1 for p = 1 or ∞, as a linear program."""
    n, d = z.shape
    if order == 1:
        found = scipy.optimize.linprog(np.ones(2 * d), A_ub=np.hstack([-z, z]), b_ub=-np.ones(n))
        w = found.x[:d] - found.x[d:]
    else:
        assert order == np.inf, "only p = 1 and p = ∞ are linear programs"
        inside = np.block([[np.eye(d), -np.ones((d, 1))], [-np.eye(d), -np.ones((d, 1))]])
        rows = np.vstack([np.hstack([-z, np.zeros((n, 1))]), inside])
        found = scipy.optimize.linprog(
            [0.0] * d + [1.0], A_ub=rows, b_ub=[-1.0] * n + [0.0] * (2 * d), bounds=(None, None)
        )
        w = found.x[:d]
    assert found.status == 0, found.message
    return w


def max_frequency_margin(z: Matrix) -> Vector:
    """argmin Σₖ |ŵₖ| subject to Zw ≥ 1, ŵ the unitary discrete Fourier transform, as a cone program."""
    w = cp.Variable(z.shape[1])
    dft = np.fft.fft(np.eye(z.shape[1]), norm="ortho")
    size = cp.sum(cp.norm(cp.vstack([dft.real @ w, dft.imag @ w]), axis=0))
    _solve(cp.Problem(cp.Minimize(size), [z @ w >= 1]))
    return w.value


def multiclass_max_margin(x: Matrix, y: Vector) -> Matrix:
    """argmin ½‖W‖² subject to (w_y − w_k)·x ≥ 1 for every wrong class k; one row of W a class."""
    w = cp.Variable((int(y.max()) + 1, x.shape[1]))
    pairs = [(i, k) for i in range(len(y)) for k in range(w.shape[0]) if k != y[i]]
    examples, wrong = np.array(pairs).T
    scores = x @ w.T
    gaps = scores[examples, y[examples]] - scores[examples, wrong]
    _solve(cp.Problem(cp.Minimize(cp.sum_squares(w) / 2), [gaps >= 1]))
    return w.value


def variation_margin(x: Matrix, y: Vector, directions: int = 4000) -> float:
    """The largest margin of Σⱼ aⱼ relu(uⱼ·x), Σ|aⱼ| = 1, for x in the plane and u on a grid of the circle."""
    angles = 2 * np.pi * np.arange(directions) / directions
    features = np.maximum(x @ np.stack([np.cos(angles), np.sin(angles)]), 0)
    return float(1 / np.abs(max_margin_in(y[:, None] * features, 1)).sum())


def logistic_in_ball(z: Matrix, radius: float) -> Vector:
    """argmin mean log(1 + exp(−Zw)) for ‖w‖ = `radius`: Newton's method in w, Brent's in the multiplier."""
    w = np.zeros(z.shape[1])

    def ridge(log_multiplier):
        nonlocal w
        multiplier = np.exp(log_multiplier)
        for _ in range(200):
            p = scipy.special.expit(-z @ w)
            gradient = -z.T @ p / len(z) + multiplier * w
            hessian = (z.T * (p * (1 - p))) @ z / len(z) + multiplier * np.eye(len(w))
            step = np.linalg.solve(hessian, gradient)
            # damped while the logarithms of the weights would change by more than one
            w = w - step / max(1.0, np.abs(z @ step).max())
            if np.abs(step).max() < 1e-14 * np.abs(w).max():
                break
        return np.linalg.norm(w) - radius

    # the multiplier at the optimum is at most ‖∇L‖ / ‖w‖ at the start
    high = np.log(np.linalg.norm(z, axis=1).max() / radius)
    low = high - 1.0
    while ridge(low) < 0:
        low -= 2.0
    ridge(scipy.optimize.brentq(ridge, low, high, xtol=1e-14, rtol=1e-14))
    return w


def nonnegative_residual(columns: Matrix, target: Vector) -> float:
    """min ‖target − columns λ‖ / ‖target‖ over λ ≥ 0."""
    sizes = np.linalg.norm(columns, axis=0)
    return scipy.optimize.nnls(columns / np.where(sizes > 0, sizes, 1), target)[1] / np.linalg.norm(target)


def _solve(problem: cp.Problem) -> None:
    problem.solve(cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert problem.status == "optimal", problem.status
