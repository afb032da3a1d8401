"""B22: a completion whose loss goes to 0 only as every norm goes to infinity."""

import warnings

import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below, holds
from references import hidden_entry_path
from shared import sum_of_squares

import gflow

SEEN, VALUES = np.array([[0, 1], [1, 0], [1, 1]]), np.array([1.0, 1.0, 0.0])
OBSERVE = {
    "hidden": lambda model, _: model.effective()[0, 0],
    "ratio": lambda model, _: gflow.bias.singular_value_ratio(model.effective()),
    "det": gflow.observe.ConservedSign("det", lambda model, _: jnp.linalg.det(model.effective()), 1e-14),
}


def path(depth, scale, times):
    """The flow from multiples of the identity; where det W falls below 1e-14 it carries a warning."""
    model = gflow.models.Factorisation.identity(2, depth, scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which is one of the checks
        return gflow.integrate(
            model,
            (SEEN, VALUES),
            times[-1],
            loss=sum_of_squares,
            rtol=1e-9,
            atol=1e-13,
            save_at=times,
            observe=OBSERVE,
        )


def run(quick: bool) -> Entry:
    """The bound on the hidden entry at depth 3, and its path at depth 2."""
    deep = path(3, 0.3, np.geomspace(1, 1e3, 60))
    q = np.sqrt(2 * deep.loss)
    hidden = np.abs(deep["hidden"])
    late = deep.loss < 1e-3
    times = np.array([1e2, 1e3, 3e3, 1e4])
    shallow = path(2, 0.1, times)
    exact = hidden_entry_path(times, 0.1)
    checks = [
        above(
            "depth 3: |W₁₁| q/(1−q)², q = √(2L), at least, where q < 1",
            (hidden * q / (1 - q) ** 2)[q < 1].min(),
            1,
        ),
        below("depth 3: largest |W₁₁ q − 1| where L < 0.001", np.abs(hidden * q - 1)[late].max(), 0.01),
        holds("depth 3: W₁₁ rises, and L reaches 0.001", bool(np.all(np.diff(hidden) > 0) and late.any())),
        below("depth 3: σ₂/σ₁ at the end", deep["ratio"][-1], 1e-6),
        below(
            "depth 2: relative error of W₁₁ at t = 100 and 1000",
            np.abs(shallow["hidden"] / exact - 1)[:2].max(),
            1e-6,
        ),
        holds(
            "depth 2: W₁₁ is right (1e-3) up to t = 10000, or a warning says that det W came too close to 0",
            bool(
                np.allclose(shallow["hidden"], exact, rtol=1e-3) or any("det" in w for w in shallow.warnings)
            ),
        ),
        holds(
            "depth 2: the trajectory warns that the sign of det W is at risk",
            any("det" in w for w in shallow.warnings),
        ),
    ]

    def draw(figure):
        axes = figure.subplots()
        axes.loglog(deep.loss, hidden, "o", ms=3, label="depth 3")
        axes.loglog(shallow.loss, np.abs(shallow["hidden"]), "s", ms=4, label="depth 2")
        fits = q < 1
        axes.loglog(deep.loss[fits], (1 - q[fits]) ** 2 / q[fits], "k-", lw=0.8, label="lower bound")
        axes.set(xlabel="loss", ylabel=r"$|W_{11}|$")
        axes.legend()

    return Entry(
        "On this completion det W keeps its sign, so that the loss can go to 0 only as |W₁₁|, and "
        "with it every norm, goes to infinity, while the rank goes to one.",
        "Razin and Cohen, NeurIPS 2020, arXiv:2005.06398",
        checks,
        draw,
    )
