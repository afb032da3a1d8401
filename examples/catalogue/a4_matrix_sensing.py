"""A4: deep matrix factorisations learn singular values one by one, and recover low rank."""

import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below, holds
from references import toy_path
from shared import underdetermined

import gflow

VALUES, START = np.array([12.0, 6.0, 4.0, 3.0]), 1e-3


def sensing_loss(model, data):
    """(1/(2N)) mean (⟨Aᵢ, W⟩ − yᵢ)²."""
    x, y = data
    return jnp.mean((x.reshape(len(y), -1) @ model.effective().ravel() - y) ** 2) / (2 * len(model.factors))


def full_loss(model, target):
    """(1/(2N)) ‖W − W*‖²."""
    return jnp.sum((model.effective() - target) ** 2) / (2 * len(model.factors))


OBSERVE = {
    "values": lambda model, _: jnp.linalg.svd(model.effective(), compute_uv=False),
    "rank": lambda model, _: gflow.bias.effective_rank(model.effective()),
}


def fully_observed(depth):
    """Largest |singular value − toy model| from a multiple of the identity, in a random basis."""
    basis, _ = np.linalg.qr(np.random.default_rng(depth).normal(size=(5, 5)))
    target = (basis * np.append(VALUES, 0)) @ basis.T
    model = gflow.models.Factorisation.identity(5, depth, START ** (1 / depth))
    t_max = {2: 4.0, 3: 7.0, 4: 12.0}[depth]
    flow = gflow.integrate(
        model, target, t_max, loss=full_loss, rtol=1e-9, atol=1e-13, observe={"values": OBSERVE["values"]}
    )
    toys = np.stack([toy_path(depth, flow.t, START, value) for value in VALUES], axis=1)
    return np.abs(flow["values"][:, :4] - toys).max()


def sensed(seed, depth, d=20, n=240, scale=1e-4):
    """The flow on n < d² Gaussian measurements of a matrix of rank 4, and its final relative error."""
    underdetermined(n, d * d)
    random = np.random.default_rng(seed)
    x, target = random.normal(size=(n, d, d)), np.diag(np.append(VALUES, np.zeros(d - 4)))
    std = scale ** (1 / depth) / np.sqrt(d)
    model = gflow.models.Factorisation.normal(d, depth, std, key=jax.random.key(seed))
    flow = gflow.integrate(
        model,
        (x, np.sum(x * target, axis=(1, 2))),
        {1: 30.0, 2: 60.0, 3: 100.0, 4: 200.0}[depth],
        loss=sensing_loss,
        rtol=1e-4,
        atol=1e-7,
        save_at=201,
        observe=OBSERVE,
    )
    return flow, np.sum((flow.model.effective() - target) ** 2) / np.sum(target**2)


def run(quick: bool) -> Entry:
    """The toy model in the singular values, and three seeds of sensing."""
    checks = [
        below(
            f"all entries seen, N = {depth}: largest |singular value − toy model|",
            fully_observed(depth),
            1e-5,
        )
        for depth in ((3,) if quick else (2, 3, 4))
    ]
    depths = (1, 3) if quick else (1, 2, 3, 4)
    # N = 2 is only drawn
    runs = {depth: [sensed(seed, depth) for seed in range(1 if depth == 2 else 3)] for depth in depths}
    errors = {depth: [error for _, error in runs[depth]] for depth in depths}
    checks.append(above("240 of 400, N = 1: ‖W − W*‖²/‖W*‖², least of 3 seeds", min(errors[1]), 0.3))
    deep = {f"240 of 400, N = {depth}": runs[depth] for depth in depths if depth >= 3}
    if not quick:
        deep["1000 of 2500, N = 3"] = [sensed(seed, 3, d=50, n=1000) for seed in range(3)]
    for name, found in deep.items():
        flows = [flow for flow, _ in found]
        worst = max(error for _, error in found)
        checks.append(below(f"{name}: ‖W − W*‖²/‖W*‖², worst of 3 seeds", worst, 1e-4))
        halves = [gflow.bias.half_times(flow.t, flow["values"][:, :4]) for flow in flows]
        ordered = all(np.all(np.diff(times) >= 0) for times in halves)
        checks.append(holds(f"{name}: the singular values reach their halves in order", ordered))
        four = all(np.sum(flow["values"][-1] > 0.5) == 4 for flow in flows)
        checks.append(holds(f"{name}: four singular values above 0.5", four))

    def draw(figure):
        for axes, depth in zip(figure.subplots(1, len(depths)), depths, strict=True):
            flow, _ = runs[depth][0]
            axes.plot(flow.t, flow["values"][:, :5], lw=1.5)
            axes.set(title=f"N = {depth}", xlabel="t")
        figure.axes[0].set_ylabel("largest singular values")

    return Entry(
        "A deep matrix factorisation from a small start learns the singular values one by one, and "
        "so recovers a matrix of low rank from fewer measurements than entries; depth 1 does not.",
        "Gissin, Shalev-Shwartz and Daniely, ICLR 2020, arXiv:1909.12051",
        checks,
        draw,
    )
