"""B39: scaled up, a network follows the flow of its tangent kernel."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, below, close
from references import kernel_flow

import gflow

SCALES = np.array([1.0, 4.0, 16.0, 64.0, 256.0])
TIME = 3.0


class Lazy(eqx.Module):
    """α (f(x; θ) − f(x; θ₀))."""

    network: eqx.nn.MLP
    start: eqx.nn.MLP
    alpha: jax.Array

    def __call__(self, x):
        """One number."""
        return self.alpha * (self.network(x) - self.start(x))


def loss(model, data):
    """|α(f − f₀) − y|² / (2α²)."""
    x, y = data
    return jnp.sum((jax.vmap(model)(x) - y) ** 2) / (2 * model.alpha**2)


def squares(model, data):
    """½ Σ (f(x) − y)²."""
    x, y = data
    return jnp.sum((jax.vmap(model)(x) - y) ** 2) / 2


@eqx.filter_jit
def features(net, x):
    """The gradients of the outputs in the parameters, one row for each example."""
    gradients = jax.vmap(lambda a: eqx.filter_grad(lambda n: n(a))(net))(x)
    return jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(gradients)], axis=1)


def at(model, x):
    """Its outputs."""
    return jax.vmap(model)(x)


def network(key):
    """A tanh network of width 20."""
    return eqx.nn.MLP(3, "scalar", 20, 1, activation=jnp.tanh, key=key)


def run(quick: bool) -> Entry:
    """Outputs on test points beside the kernel's closed form, on three seeds."""
    orders, moved, linear, shown = [], [], 0.0, []
    for seed in range(3):
        random = np.random.default_rng(seed)
        x, tests, y = random.normal(size=(6, 3)), random.normal(size=(20, 3)), random.normal(size=6)
        net = network(jax.random.key(seed))
        params = eqx.filter(net, eqx.is_inexact_array)
        exact = kernel_flow(*(np.asarray(features(net, points)) for points in (x, tests)), y, TIME)
        members = jax.tree.map(
            lambda leaf: jnp.stack([leaf] * len(SCALES)) if eqx.is_array(leaf) else leaf, net
        )
        flow = gflow.integrate(
            Lazy(members, members, jnp.asarray(SCALES)),
            (x, y),
            TIME,
            loss=loss,
            trainable=Lazy(True, False, False),
            ensemble=True,
            rtol=1e-10,
            atol=1e-12,
            save_at=2,
        )
        outputs = np.asarray(eqx.filter_vmap(at, in_axes=(eqx.if_array(0), None))(flow.model, tests))
        errors = np.linalg.norm(outputs - exact, axis=1) / np.linalg.norm(exact)
        orders += list(np.log(errors[-3:-1] / errors[-2:]) / np.log(4))
        distance = lambda a, b: sum(
            jnp.sum((p - q) ** 2) for p, q in zip(*map(jax.tree.leaves, (a, b)), strict=True)
        )
        ends = eqx.filter(flow.model.network, eqx.is_inexact_array)
        far = [
            float(distance(jax.tree.map(lambda leaf, i=i: leaf[i], ends), params)) ** 0.5
            for i in range(len(SCALES))
        ]
        moved += list(np.log(far[-3:-1] / np.array(far[-2:])) / np.log(4))
        model = gflow.models.Linearised(net)
        # its output starts at f₀, so that y + f₀ is the target that leaves the same residual
        shift = np.asarray(jax.vmap(net)(jnp.asarray(x)))
        tangent = gflow.integrate(
            model,
            (x, y + shift),
            TIME,
            loss=squares,
            trainable=model.trainable,
            rtol=1e-10,
            atol=1e-12,
            save_at=2,
        )
        found = jax.vmap(tangent.model)(jnp.asarray(tests)) - jax.vmap(net)(jnp.asarray(tests))
        linear = max(linear, np.linalg.norm(found - exact) / np.linalg.norm(exact))
        shown.append(errors)
    farthest = lambda values: max(values, key=lambda value: abs(value - 1))
    checks = [
        below("linearised model: error to the kernel's closed form, worst of 3 seeds", linear, 1e-7),
        close(
            "order in 1/α of the distance to it over the last two steps, worst", farthest(orders), 1.0, 0.15
        ),
        close("order in 1/α of ‖θ − θ₀‖, worst", farthest(moved), 1.0, 0.15),
    ]

    def draw(figure):
        axes = figure.subplots()
        labels = [f"seed {seed}" for seed in range(3)]
        axes.loglog(SCALES, np.array(shown).T, "o-", ms=4, label=labels)
        axes.loglog(SCALES, shown[0][-1] * SCALES[-1] / SCALES, "k--", lw=0.8, label=r"$1/\alpha$")
        axes.set(xlabel=r"$\alpha$", ylabel="distance to the kernel's flow")
        axes.legend()

    return Entry(
        "The larger the scale α of a network's output, the closer its flow is to that of its "
        "tangent kernel, and the less its parameters move, both like 1/α.",
        "Chizat, Oyallon and Bach, NeurIPS 2019, arXiv:1812.07956; Jacot et al., NeurIPS 2018, "
        "arXiv:1806.07572",
        checks,
        draw,
    )
