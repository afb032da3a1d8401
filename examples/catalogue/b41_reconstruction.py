"""B41: the parameters of a trained network are made of its training examples."""

import jax
import numpy as np
from entry import Entry, above, below
from references import nonnegative_residual
from separable import SEEDS, follow_by_euler, worst

import gflow
from gflow import bias

LEVELS = (10, 30, 100)


def run(quick: bool) -> Entry:
    """min over λ ≥ 0 of ‖θ − Σ λᵢyᵢ∇f(xᵢ)‖/‖θ‖, for training examples and for fresh ones.

    Quick: one data set.
    """
    trained, fresh, agreement = [], [], []
    for seed in SEEDS[:1] if quick else SEEDS:
        random = np.random.default_rng(seed)
        x, new = random.normal(size=(2, 20, 30))
        y, signs = np.sign(random.normal(size=(2, 20)))
        model = gflow.models.TwoLayer.balanced(30, 20, 0.1, key=jax.random.key(seed))
        models = []
        for level in LEVELS:
            model = follow_by_euler(model, (x, y), level, np.zeros(1), step=2e-4).model
            models.append(model)
        trained.append([float(bias.reconstruction_residual(m, (x, y))) for m in models])
        fresh.append([float(bias.reconstruction_residual(m, (new, signs))) for m in models])
        agreement.append(abs(trained[-1][0] / residual(models[0], x, y) - 1))

    def draw(figure):
        axes = figure.subplots()
        for name, color, values in (("training", "C0", trained), ("fresh", "C3", fresh)):
            for row in values:
                axes.loglog(
                    LEVELS, row, "o-", color=color, label=f"{name} examples" if row is values[0] else None
                )
        axes.set(
            xlabel=r"$-\log L$",
            ylabel=r"$\|\theta-\sum\lambda_i y_i\nabla f(x_i)\|/\|\theta\|$",
        )
        axes.legend()

    return Entry(
        "The parameters of a trained homogeneous network are nearly a sum of gradients of its "
        "training examples, and so tell them from others.",
        "Haim, Vardi, Yehudai, Shamir and Irani, NeurIPS 2022, arXiv:2206.07758",
        [
            below("residual of the training examples, largest", np.max(trained), 0.439),
            above("residual of fresh examples, least", np.min(fresh), 0.9),
            below("largest relative difference to the residual by scipy", worst(agreement), 1e-4),
        ],
        draw,
    )


def residual(model, x, y):
    """The same from derivatives by hand and scipy."""
    w, v = np.asarray(model.w), np.asarray(model.v)
    z = x @ w.T
    by_v = np.maximum(z, 0)
    by_w = ((z > 0) * v)[:, :, None] * x[:, None, :]
    rows = y[:, None] * np.hstack([by_w.reshape(len(x), -1), by_v])
    return nonnegative_residual(rows.T, np.append(w.ravel(), v))
