"""A1: the depth-N toy model follows its closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, below
from references import toy_time, toy_value

import gflow

TARGET, START = np.array([12.0, 6.0, 4.0, 3.0]), 1e-3
EFFECTIVE = {"sigma": lambda model, _: model.effective()}


class Exponential(eqx.Module):
    """σᵢ = exp(wᵢ), whose flow is the limit N → ∞ of the toy model: σ' = σ² (σ* − σ)."""

    w: jax.Array
    depth: float = eqx.field(static=True, default=1.0)  # of the factor of the loss

    def effective(self):
        """σ."""
        return jnp.exp(self.w)


def toy_loss(model, target):
    """(1/(2N²)) Σ (σᵢ − σᵢ*)²."""
    return jnp.sum((model.effective() - target) ** 2) / (2 * model.depth**2)


def run(quick: bool) -> Entry:
    """Errors of σ (N ≤ 2) and of the time at which σ is reached (N ≥ 3)."""
    paths, checks = {}, []
    for depth in (2, 3, np.inf) if quick else (1, 2, 3, 4, 10, np.inf):
        t_max = {1: 8.0, 2: 4.0}.get(depth) or 1.2 * toy_time(depth, 0.99 * TARGET[-1:], START, TARGET[-1])[0]
        if depth == np.inf:
            model = Exponential(jnp.full(4, np.log(START)))
        else:
            model = gflow.models.Diagonal.constant(4, START ** (1 / depth), depth, signed=False)
        flow = gflow.integrate(
            model, TARGET, t_max, loss=toy_loss, rtol=1e-9, atol=1e-13, save_at=2001, observe=EFFECTIVE
        )
        t, sigma = paths[depth] = flow.t, flow["sigma"]
        errors = []
        for i, target in enumerate(TARGET):
            if depth <= 2:
                errors.append(np.abs(sigma[:, i] / toy_value(depth, t, START, target) - 1).max())
            else:
                inside = np.flatnonzero((sigma[:, i] > 2 * START) & (sigma[:, i] < 0.99 * target))[::40]
                errors.append(np.abs(t[inside] / toy_time(depth, sigma[inside, i], START, target) - 1).max())
        what, bound = ("σ(t)", 1e-7) if depth <= 2 else ("t at which σ is reached", 1e-6)
        name = "∞" if depth == np.inf else depth
        checks.append(below(f"N = {name}: relative error of {what}", max(errors), bound))

    def draw(figure):
        for axes, (depth, (t, sigma)) in zip(figure.subplots(1, len(paths)), paths.items(), strict=True):
            for i, target in enumerate(TARGET):
                (line,) = axes.plot(t, sigma[:, i] / target, lw=1.5)
                dots = np.flatnonzero((sigma[:, i] > 2 * START) & (sigma[:, i] < 0.98 * target))[::60]
                if depth <= 2:
                    dots = np.arange(0, len(t), 120)
                    axes.plot(t[dots], toy_value(depth, t[dots], START, target) / target, "k.", ms=4)
                elif len(dots):
                    when = toy_time(depth, sigma[dots, i], START, target)
                    axes.plot(when, sigma[dots, i] / target, "k.", ms=4)
            axes.set(title=f"N = {depth}".replace("inf", "∞"), xlabel="t")
        figure.axes[0].set_ylabel(r"$\sigma_i/\sigma_i^*$ (dots: closed form)")

    return Entry(
        "A product of N weights learns its targets along closed forms, the steeper one after the "
        "other the deeper it is.",
        "Gissin, Shalev-Shwartz and Daniely, ICLR 2020, arXiv:1909.12051",
        checks,
        draw,
    )
