"""B14: the scale of a diagonal network's start decides between the ℓ₁ and the ℓ₂ norm."""

import numpy as np
from entry import Entry, below, holds
from references import closest, deep_hypentropy_limit, hypentropy_limit, smallest_l1
from shared import error, interpolate, predictors, regression, stack

import gflow

SCALES = {2: (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4), 3: (1.0, 0.1, 0.01), 4: (1.0, 0.1, 0.01)}


def limits(depth, data):
    """Where the flows of uᴰ − vᴰ from u = v = α end, one row for each scale α."""
    networks = stack([gflow.models.Diagonal.constant(12, alpha, depth) for alpha in SCALES[depth]])
    # deep ones take a time like α^{2−D} to begin, and are stiff by then
    how = {} if depth == 2 else dict(solver=gflow.solvers.EXPRB43(), rtol=1e-9, atol=1e-13, level=1e-8)
    networks = interpolate(networks, data, **how)
    return networks, predictors(networks)


def run(quick: bool) -> Entry:
    """Limits beside those of a dual Newton method, and their norms, on three seeds.

    Quick: one seed for the deep ones, and none of depth 4.
    """
    checks, ratios = [], {}
    for depth in (2, 3) if quick else (2, 3, 4):
        scales, worst, drift = SCALES[depth], 0.0, 0.0
        seeds = 1 if quick and depth > 2 else 3
        for seed in range(seeds):
            x, y = regression(seed)
            networks, found = limits(depth, (x, y))
            for alpha, w in zip(scales, found, strict=True):
                exact = (
                    hypentropy_limit(x, y, 2 * alpha**2)
                    if depth == 2
                    else deep_hypentropy_limit(x, y, alpha, depth)
                )
                worst = max(worst, error(w, exact))
            if depth == 2:
                product = np.asarray(networks.u * networks.v) / np.array(scales)[:, None] ** 2
                drift = max(drift, np.abs(product - 1).max())
            l1 = np.abs(found).sum(axis=1) / np.abs(smallest_l1(x, y)).sum()
            l2 = np.linalg.norm(found, axis=1) / np.linalg.norm(closest(x, y, np.zeros(12)))
            ratios.setdefault(depth, []).append((l1, l2))
        span = f"α from {max(scales):g} to {min(scales):g}"
        what = f"u^{depth} − v^{depth}: error to the dual Newton limit, worst of {seeds} seeds and {span}"
        checks.append(below(what, worst, 1e-7))
        if depth == 2:
            checks.append(below("u² − v²: relative drift of uv = α²", drift, 1e-7))
            kernel = max(l2[0] for _, l2 in ratios[2]) - 1
            checks.append(below("u² − v², α = 10: ‖w‖₂/min − 1", kernel, 1e-4))
            falls = all(np.all(np.diff(l1) <= 1e-9) for l1, _ in ratios[2])
            checks.append(holds("u² − v²: ‖w‖₁ falls as α does", falls))
        rich = max(l1[-1] for l1, _ in ratios[depth]) - 1
        checks.append(
            below(f"depth {depth}, α = {min(scales):g}: ‖w‖₁/min − 1", rich, 0.02 if depth == 2 else 1e-3)
        )

    def draw(figure):
        for axes, depth in zip(figure.subplots(1, len(ratios)), ratios, strict=True):
            l1, l2 = ratios[depth][0]
            axes.semilogx(SCALES[depth], l1, "o-", ms=4, label=r"$\|w\|_1/\min$")
            axes.semilogx(SCALES[depth], l2, "s--", ms=4, label=r"$\|w\|_2/\min$")
            axes.set(title=f"depth {depth}", xlabel=r"scale $\alpha$")
            axes.legend(fontsize=8)

    return Entry(
        "The flow of a diagonal network uᴰ − vᴰ from u = v = α minimises a hyperbolic entropy among"
        " the solutions: the ℓ₂ norm for large α, the ℓ₁ norm for small α.",
        "Woodworth et al., COLT 2020, arXiv:2002.09277",
        checks,
        draw,
    )
