"""Stability of RKC3's recursion, and the defects of RKC2 that it relies on.

On `y' = lambda y` a step of RKC3 is `R(z) y_0 + E_2(z) p''/2 + E_3(z) p'''/6` (in units of the
step), where `R` is the stability polynomial of RKC2, `E_k` its defect on `u' = lambda (u + c^k) -
(c^k)'` and `p` the cubic through the last four values. With steps growing by a fixed ratio this is
a recursion over four values; its spectral radius is printed for the worst `z` in the stability
interval.  Run:  python benchmarks/_rkc3_stability.py
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


def defect(s, z, k):
    return step(s, z, 0.0, lambda c: c**k, lambda c: k * c ** (k - 1)) + 1


def worst(s, ratio, points=400):
    beta = 2 / 3 * (s * s - 1) * (1 - 2 / 15 * 2 / 13)
    z = -beta * np.linspace(0, 1, points)[1:] ** 2
    nodes, h = [0.0], 1.0
    for _ in range(3):
        h /= ratio
        nodes.append(nodes[-1] - h)
    weights = np.linalg.inv(np.vander(nodes, 4, increasing=True))
    r = step(s, z, 1.0, lambda c: 0.0, lambda c: 0.0)
    rows = np.outer(r, [1, 0, 0, 0]) + sum(np.outer(defect(s, z, k), weights[k]) for k in (2, 3))
    radius = []
    for row in rows:
        companion = np.eye(4, k=-1)
        companion[0] = row
        radius.append(np.max(np.abs(np.linalg.eigvals(companion))))
    return max(radius)


if __name__ == "__main__":
    ratios = (1.0, 1.1, 1.2, 1.3, 1.5)
    print("stages   E_3(0)/6   spectral radius at step ratio", *ratios)
    for s in (2, 3, 4, 5, 6, 8, 10, 15, 20, 40, 100):
        leading = float(defect(s, np.asarray([-1e-9]), 3)[0]) / 6
        print(f"{s:6d}   {leading:8.4f}   ", *(f"{worst(s, r):.3f}" for r in ratios))
