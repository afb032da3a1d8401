"""B39: with a large output scale a network follows its tangent kernel, and its weights hardly move."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, below, close, holds
from references import kernel_path, tangent_kernel
from shared import stack

import gflow

SCALES = np.array([1.0, 4.0, 16.0, 64.0, 256.0])
WIDTH, SIZE, T_MAX = 30, 3, 20.0


class Network(eqx.Module):
    """f(x) = v·tanh(Wx) / √m."""

    w: jax.Array
    v: jax.Array

    def __call__(self, x):
        return jnp.dot(self.v, jnp.tanh(self.w @ x)) / self.v.size**0.5


class Scaled(eqx.Module):
    """α (f(x; θ) − f(x; θ₀))."""

    network: Network
    start: Network
    alpha: jax.Array

    def __call__(self, x):
        return self.alpha * (self.network(x) - self.start(x))


TRAINABLE = Scaled(True, False, False)


def scaled_loss(model, data):
    """‖α (f − f₀) − y‖² / (2α²)."""
    x, y, _ = data
    return jnp.sum((jax.vmap(model)(x) - y) ** 2) / (2 * model.alpha**2)


def moved(model, _):
    """‖θ − θ₀‖."""
    pairs = zip(jax.tree.leaves(model.network), jax.tree.leaves(model.start), strict=True)
    return jnp.sqrt(sum(jnp.sum((p - q) ** 2) for p, q in pairs))


OBSERVE = {"test": lambda model, data: jax.vmap(model)(data[2]), "moved": moved}


def run(quick: bool) -> Entry:
    """Distance to the closed form of kernel gradient flow on test points, over α, on three seeds."""
    del quick
    errors, moves, linear, shown = np.zeros((3, 5)), np.zeros((3, 5)), 0.0, []
    for seed in range(3):
        random = np.random.default_rng(seed)
        w, v = random.normal(size=(WIDTH, SIZE)), random.normal(size=WIDTH)
        x, y, test = random.normal(size=(6, SIZE)), random.normal(size=6), random.normal(size=(5, SIZE))
        network = Network(jnp.asarray(w), jnp.asarray(v))
        model = stack([Scaled(network, network, jnp.asarray(alpha)) for alpha in SCALES])
        how = dict(rtol=1e-9, atol=1e-12, save_at=41)
        flow = gflow.integrate(
            model,
            (x, y, test),
            T_MAX,
            loss=scaled_loss,
            trainable=TRAINABLE,
            ensemble=True,
            observe=OBSERVE,
            **how,
        )
        t = flow.t
        exact = kernel_path(tangent_kernel(w, v, x, x), tangent_kernel(w, v, test, x), y, t)
        errors[seed] = np.linalg.norm(flow["test"] - exact, axis=2).max(axis=1) / np.linalg.norm(exact[-1])
        moves[seed] = flow["moved"][:, -1]
        if seed == 0:
            shown = t, flow["test"], exact
        # the linearised model, whose displacement scales out: f₀ + ∇f·δ with targets f₀ + y
        lazy = gflow.models.Linearised(network)
        before = jax.vmap(network)
        tangent = gflow.integrate(
            lazy,
            (x, before(x) + y, test),
            T_MAX,
            loss=lambda model, data: jnp.sum((jax.vmap(model)(data[0]) - data[1]) ** 2) / 2,
            trainable=lazy.trainable,
            observe={"test": OBSERVE["test"]},
            **how,
        )
        linear = max(linear, np.abs(tangent["test"] - before(test) - exact).max())
    orders = np.log2(errors[:, :-1] / errors[:, 1:]) / 2
    slopes = np.log2(moves[:, :-1] / moves[:, 1:]) / 2
    last = orders[np.arange(3)[:, None], [-2, -1]]
    order = last.flat[np.abs(last - 1).argmax()]
    slope = slopes[:, 1:].flat[np.abs(slopes[:, 1:] - 1).argmax()]
    checks = [
        close("order in 1/α of the error on test points, α ≥ 16, worst of 3 seeds", order, 1, 0.15),
        close("order in 1/α of ‖θ − θ₀‖, α ≥ 4, worst", slope, 1, 0.15),
        holds("the error falls from α to 4α", bool(np.all(np.diff(errors, axis=1) < 0))),
        below("α = 256: error relative to ‖prediction‖, worst", errors[:, -1].max(), 0.05),
        below("linearised model: largest error to kernel gradient flow, worst", linear, 1e-8),
    ]

    def draw(figure):
        paths, scales = figure.subplots(1, 2)
        t, found, exact = shown
        for alpha, path in zip(SCALES, found, strict=True):
            paths.plot(t, path[:, 0], lw=1.2, label=rf"$\alpha={alpha:g}$")
        paths.plot(t, exact[:, 0], "k--", lw=1.2, label="kernel flow")
        paths.set(xlabel="t", ylabel=r"$\alpha(f-f_0)$ at a test point")
        paths.set_ylim(top=paths.get_ylim()[1] + 0.4 * np.ptp(paths.get_ylim()))
        paths.legend(fontsize=8, ncols=2, loc="upper center")
        scales.loglog(SCALES, errors[0], "o-", ms=4, label="error to kernel flow")
        scales.loglog(SCALES, moves[0], "s-", ms=4, label=r"$\|\theta-\theta_0\|$")
        scales.loglog(SCALES, moves[0, 0] / SCALES / 8, "k--", lw=0.8, label=r"$\propto1/\alpha$")
        scales.set(xlabel=r"output scale $\alpha$")
        scales.legend(fontsize=8)

    return Entry(
        "The larger the output scale α, the less the weights move, ∝ 1/α, and the closer the network follows "
        "the kernel gradient flow of its linearisation, at order 1/α.",
        "Chizat, Oyallon and Bach, NeurIPS 2019, arXiv:1812.07956; Jacot, Gabriel and Hongler, NeurIPS 2018, "
        "arXiv:1806.07572",
        checks,
        draw,
    )
