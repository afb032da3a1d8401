"""B1: a polynomial of degree 8 fits noisy points better than one of degree 3, and the truth worse."""

import numpy as np
from entry import Entry, below, close, holds
from shared import error, sum_of_squares

import gflow

DEGREES, T_MAX = (3, 8), 5e3


def truth(x):
    """x³ − x/2."""
    return x**3 - x / 2


def features(x, degree):
    """Legendre polynomials: monomials are so badly conditioned that the flow would not arrive."""
    return np.polynomial.legendre.legvander(x, degree)


def mean_of_squares(model, data):
    """½ mean (f(xᵢ) − yᵢ)²."""
    return sum_of_squares(model, data) / len(data[1])


def run(quick: bool) -> Entry:
    """Flows from 0 beside least squares, and errors on the sample and off it, on three seeds."""
    del quick
    x, grid = np.linspace(-1, 1, 12), np.linspace(-1, 1, 400)
    worst, trained, tested, fits = dict.fromkeys(DEGREES, 0.0), [], [], {}
    for seed in range(3):
        y = truth(x) + 0.15 * np.random.default_rng(seed).normal(size=12)
        for degree in DEGREES:
            phi = features(x, degree)
            start = gflow.models.DeepLinear([np.zeros((1, degree + 1))])
            flow = gflow.integrate(
                start, (phi, y), T_MAX, loss=mean_of_squares, rtol=1e-10, atol=1e-14, save_at=2
            )
            found = np.asarray(flow.model.effective()[0])
            worst[degree] = max(worst[degree], error(found, np.linalg.lstsq(phi, y, rcond=None)[0]))
            trained.append(np.mean((phi @ found - y) ** 2))
            tested.append(np.mean((features(grid, degree) @ found - truth(grid)) ** 2))
            if seed == 0:
                fits[degree] = y, features(grid, degree) @ found
    trained, tested = np.reshape(trained, (3, 2)), np.reshape(tested, (3, 2))
    checks = [
        below(f"degree {degree}: error of the flow to least squares, worst of 3 seeds", worst[degree], 1e-9)
        for degree in DEGREES
    ]
    listed = {(0, 0): 0.00919, (0, 1): 0.000204, (1, 0): 0.00190, (1, 1): 0.0129}
    for (which, i), value in listed.items():
        what = f"degree {DEGREES[i]}, seed 0: {('training', 'test')[which]} error"
        checks.append(close(what, (trained, tested)[which][0, i], value, 0.01 * value))
    checks += [
        holds("degree 8 fits the sample better", bool(np.all(trained[:, 1] < trained[:, 0]))),
        holds("degree 8 is further from the truth", bool(np.all(tested[:, 1] > tested[:, 0]))),
    ]

    def draw(figure):
        for axes, degree in zip(figure.subplots(1, 2, sharey=True), DEGREES, strict=True):
            y, fit = fits[degree]
            axes.plot(x, y, "ko", ms=4, label="sample")
            axes.plot(grid, truth(grid), "k--", lw=0.8, label="truth")
            axes.plot(grid, fit, label="flow")
            axes.set(title=f"degree {degree}", xlabel="$x$", ylim=(-1.1, 1.1))
        figure.axes[0].set_ylabel("$y$")
        figure.axes[0].legend(fontsize=8, loc="upper left")

    return Entry(
        "The flow of a regression on polynomials ends at least squares, so that degree 8 fits noisy points "
        "of a cubic better than degree 3, and the cubic worse.",
        "Vardi, Communications of the ACM 2023, arXiv:2208.12591",
        checks,
        draw,
    )
