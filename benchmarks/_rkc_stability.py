"""Stability of RKC3's recursion, and the defects of RKC2 that it relies on.

On `y' = lambda y` a step of RKC3 is `R(z) y_0 + sum_k D_k(z) a_k` (in units of the step), where `R` is the
stability polynomial of RKC2, `D_k` its defect on the `k`-th power of logarithmic time less its linear part,
and `a_k` are the coefficients of the polynomial through the last values. With steps that grow by a fixed
ratio this is a recursion over these values; its spectral radius is printed for the worst `z` in the stability
interval, and beside it that with a polynomial in time itself.  Run:  python benchmarks/_rkc_stability.py
"""

import numpy as np


def coefficients(s, eps=2 / 13):
    w0 = 1 + eps / s**2
    t, p, q = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for j in range(2, s + 1):
        q.append(4 * p[j - 1] + 2 * w0 * q[j - 1] - q[j - 2])
        p.append(2 * t[j - 1] + 2 * w0 * p[j - 1] - p[j - 2])
        t.append(2 * w0 * t[j - 1] - t[j - 2])
    w1 = p[s] / q[s]
    b = [0.0, 0.0] + [q[j] / p[j] ** 2 for j in range(2, s + 1)]
    b[0] = b[1] = b[2]
    c = [0.0, 0.0] + [w1 * q[j] / p[j] for j in range(2, s + 1)]
    c[1] = c[2] / p[2]
    a = [1 - b[j] * t[j] for j in range(s + 1)]
    return w0, w1, a, b, c


def step(s, z, u0, q, dq):
    """One RKC2 step of `u' = z (u + q) - q'` from `u0`, for an array of `z`."""
    w0, w1, a, b, c = coefficients(s)
    f0 = z * (u0 + q(0.0)) - dq(0.0)
    before, y = u0 + 0 * z, u0 + b[1] * w1 * f0
    for j in range(2, s + 1):
        mu, nu = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2]
        mu_f = 2 * b[j] * w1 / b[j - 1]
        f = z * (y + q(c[j - 1])) - dq(c[j - 1])
        y, before = (
            (1 - mu - nu) * u0 + mu * y + nu * before + mu_f * (f - a[j - 1] * f0),
            y,
        )
    return y


def defect(s, z, q, dq):
    return step(s, z, 0.0, q, dq) + q(1.0)


def worst(s, ratio, *, logarithmic, memory=3, points=400):
    beta = 2 / 3 * (s * s - 1) * (1 - 2 / 15 * 2 / 13)
    z = -beta * np.linspace(0, 1, points)[1:] ** 2
    nodes, h = [0.0], 1.0
    for _ in range(memory):
        h /= ratio
        nodes.append(nodes[-1] - h)
    # as `gflow/solvers/_bend.py` clips it
    rho = np.clip(ratio - 1, 1e-4, 0.9 / -nodes[-1]) if logarithmic else 1e-9
    stretched = lambda x: np.log1p(rho * x) / rho
    weights = np.linalg.inv(np.vander(stretched(np.array(nodes)), memory + 1, increasing=True))
    row = np.outer(step(s, z, 1.0, lambda c: 0.0, lambda c: 0.0), np.eye(memory + 1)[0])
    for k in range(1, memory + 1):
        linear = float(k == 1)
        q = lambda c, k=k, linear=linear: stretched(c) ** k - linear * c
        dq = lambda c, k=k, linear=linear: k * stretched(c) ** (k - 1) / (1 + rho * c) - linear
        row = row + np.outer(defect(s, z, q, dq), weights[k])
    companion = np.broadcast_to(np.eye(memory + 1, k=-1), (len(z), memory + 1, memory + 1)).copy()
    companion[:, 0] = row
    return np.max(np.abs(np.linalg.eigvals(companion)))


if __name__ == "__main__":
    ratios = (0.7, 1.0, 1.1, 1.2, 1.3, 1.5, 1.8)
    for logarithmic in (True, False):
        kind = "logarithmic time" if logarithmic else "time"
        print(f"polynomial in {kind}\nstages   defect of t³/6   spectral radius at step ratio", *ratios)
        for s in (2, 3, 4, 5, 6, 8, 10, 15, 20, 40, 100):
            cubic = defect(s, np.asarray([-1e-9]), lambda c: c**3, lambda c: 3 * c**2)
            radii = (worst(s, r, logarithmic=logarithmic) for r in ratios)
            print(f"{s:6d}   {float(cubic[0]) / 6:14.4f}   ", *(f"{radius:.3f}" for radius in radii))
