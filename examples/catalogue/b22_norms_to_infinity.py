"""B22: completing a matrix can drive all norms to infinity, while the rank falls towards one."""

import warnings

import diffrax
import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below, holds

import gflow

# |W₁₁| at these times from two factors 0.1 I
LISTED = {1e2: 7.8546, 1e3: 17.900, 3e3: 26.019, 1e4: 39.022}


def loss(model, data):
    """½ [(W₁₂ − 1)² + (W₂₁ − 1)² + W₂₂²]: W₁₁ isn't seen."""
    del data
    w = model.effective()
    return ((w[0, 1] - 1) ** 2 + (w[1, 0] - 1) ** 2 + w[1, 1] ** 2) / 2


def determinant(model, _):
    """det W, whose sign the flow of a balanced factorisation conserves."""
    w = model.effective()
    return w[0, 0] * w[1, 1] - w[0, 1] * w[1, 0]


def complete(depth, scale, times, solver=None):
    """The flow from factors scale · I; what it warns of is in the trajectory, and not printed here."""
    observe = {
        "det": gflow.observe.ConservedSign("det", determinant, 1e-13),
        "corner": lambda model, _: model.effective()[0, 0],
        "values": lambda model, _: jnp.linalg.svd(model.effective(), compute_uv=False),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gflow.integrate(
            gflow.models.Factorisation.identity(2, depth, scale),
            None,
            times[-1],
            loss=loss,
            solver=solver,
            rtol=1e-9,
            atol=1e-12,
            save_at=times,
            observe=observe,
        )


def run(quick: bool) -> Entry:
    """|W₁₁| beside its lower bound at depth 3, and beside the values listed at depth 2."""
    del quick
    three = complete(3, 0.3, np.append(0, np.geomspace(1, 3e5, 60)), diffrax.Kvaerno5())
    corner, q = np.abs(three["corner"]), np.sqrt(2 * three.loss)
    bound = np.where(q < 1, (1 - q) ** 2 / q, 0)
    late = three.loss < 1e-3
    two = complete(2, 0.1, np.array([0, *LISTED]))
    found = np.abs(two["corner"][1:])
    rises = np.all(np.diff(corner) > 0)
    checks = [
        below("depth 3: (1−q)²/q − |W₁₁| with q = √(2L), largest of all records", (bound - corner).max(), 0),
        below("depth 3: | |W₁₁| q − 1 | at L < 1e-3", np.abs(corner * q - 1)[late].max(), 0.01),
        above("depth 3: records with L < 1e-3", late.sum(), 5),
        holds("depth 3: |W₁₁| increases", bool(rises)),
        above("depth 3: |W₁₁| at the end", corner[-1], 100),
        below("depth 3: σ₂/σ₁ at the end", three["values"][-1, 1] / three["values"][-1, 0], 1e-10),
        below("depth 3: warnings", len(three.warnings), 0),
        below(
            "depth 2: relative error of |W₁₁| at t = 1e2, 1e3, 3e3, 1e4",
            np.abs(found / [*LISTED.values()] - 1).max(),
            1e-4,
        ),
        holds(
            "depth 2: the run is flagged, for det W sinks below rounding",
            any(text.startswith("det") for text in two.warnings),
        ),
    ]

    def draw(figure):
        norm, gap = figure.subplots(1, 2)
        norm.loglog(three.t[1:], corner[1:], label="depth 3")
        norm.loglog(two.t[1:], found, "s", ms=5, label="depth 2")
        norm.set(xlabel="t", ylabel=r"$|W_{11}|$")
        norm.legend()
        gap.loglog(three.loss, corner, "o", ms=4, label="flow, depth 3")
        gap.loglog(three.loss[q < 0.9], bound[q < 0.9], "k-", lw=0.8, label=r"$(1-q)^2/q$, $q=\sqrt{2L}$")
        gap.set(xlabel="loss $L$", ylabel=r"$|W_{11}|$")
        gap.legend()

    return Entry(
        "Of a 2 × 2 matrix with three entries seen, deep factorisation drives the fourth, and so every norm, "
        "to infinity while the rank falls to one.",
        "Razin and Cohen, NeurIPS 2020, arXiv:2005.06398",
        checks,
        draw,
    )
