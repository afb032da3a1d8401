"""B18: with commuting measurements, matrix factorisation goes to the smallest nuclear norm."""

import numpy as np
from entry import Entry, below, holds
from references import kl_projection, smallest_trace
from shared import error, interpolate, predictors, stack

import gflow

SCALES = np.array([1e-1, 1e-2, 1e-3, 1e-4])


def run(quick: bool) -> Entry:
    """Limits of UUᵀ from U = αI beside the entropy's projection and a semidefinite program."""
    exact, ratios = 0.0, []
    for seed in range(3):
        random = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(random.normal(size=(6, 6)))
        spectra, truth = random.normal(size=(3, 6)), random.uniform(0, 1, 6)
        x, y = np.einsum("ij,kj,lj->kil", basis, spectra, basis), spectra @ truth
        models = stack([gflow.models.SymmetricFactorisation.identity(6, alpha) for alpha in SCALES])
        found = predictors(interpolate(models, (x, y), rtol=1e-12))
        for alpha, matrix in zip(SCALES, found, strict=True):
            # λᵢ = α² exp((Aᵀν)ᵢ) along the flow: mirror flow of the entropy in the eigenvalues
            values = kl_projection(spectra, y, np.full(6, alpha**2))
            exact = max(exact, error(matrix, (basis * values) @ basis.T))
        optimum, _ = smallest_trace(x, y)
        ratios.append(np.trace(found, axis1=1, axis2=2) / optimum)
    checks = [
        below("error to the entropy's projection, worst of 3 seeds and 4 scales", exact, 1e-7),
        below(
            "α = 0.001: trace / optimum of the semidefinite program − 1, worst of 3 seeds",
            max(r[2] for r in ratios) - 1,
            1e-3,
        ),
        holds("the trace falls with α", all(np.all(np.diff(r) <= 1e-8) for r in ratios)),
    ]

    def draw(figure):
        axes = figure.subplots()
        for seed, values in enumerate(ratios):
            axes.loglog(SCALES, np.maximum(values - 1, 1e-12), "o-", ms=4, label=f"seed {seed}")
        axes.set(xlabel=r"scale $\alpha$", ylabel=r"trace / minimum $-1$")
        axes.legend()

    return Entry(
        "With commuting measurements, the flow of UUᵀ goes to the smallest nuclear norm as the "
        "start shrinks.",
        "Gunasekar et al., NeurIPS 2017, arXiv:1705.09280",
        checks,
        draw,
    )
