"""B1: gradient flow on polynomial features is least squares: degree 3 generalises, degree 8 overfits."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, below, holds

import gflow


def features(x, degree):
    """Legendre polynomials, which keep the problem well conditioned."""
    return np.polynomial.legendre.legvander(x, degree)


def run(quick: bool) -> Entry:
    """Coefficients beside least squares for two degrees, on three seeds."""
    curve = lambda x: x**3 - x / 2
    grid = np.linspace(-1, 1, 400)
    worst, lower, shown = {3: 0.0, 8: 0.0}, True, {}
    for seed in range(3):
        random = np.random.default_rng(seed)
        x = np.linspace(-1, 1, 12)
        y = curve(x) + 0.15 * random.normal(size=12)
        train = {}
        for degree in (3, 8):
            phi = features(x, degree)
            model = gflow.models.DeepLinear([jnp.zeros((1, degree + 1))])
            flow = gflow.integrate(model, (phi, y), 5e3, rtol=1e-9, atol=1e-12, save_at=2)
            found, exact = np.asarray(flow.model.effective()[0]), np.linalg.lstsq(phi, y, rcond=None)[0]
            worst[degree] = max(worst[degree], np.abs(found - exact).max())
            train[degree] = np.mean((phi @ found - y) ** 2)
            if seed == 0:
                shown[degree] = features(grid, degree) @ found
        if seed == 0:
            points = x, y
        lower &= train[8] < train[3]
    checks = [
        below(f"degree {degree}: largest error of a coefficient, worst of 3 seeds", value, 1e-9)
        for degree, value in worst.items()
    ]
    checks.append(holds("the training error falls with the degree, on 3 seeds", bool(lower)))

    def draw(figure):
        axes = figure.subplots()
        axes.plot(*points, "ko", ms=4, label="data")
        axes.plot(grid, curve(grid), "k:", lw=1, label="truth")
        for degree, values in shown.items():
            axes.plot(grid, values, label=f"degree {degree}")
        axes.set(xlabel="x", ylabel="y")
        axes.legend()

    return Entry(
        "On polynomial features gradient flow goes to least squares, which fits noise if the degree"
        " allows it.",
        "Vardi, Communications of the ACM 2023, arXiv:2208.12591",
        checks,
        draw,
    )
