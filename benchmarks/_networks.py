"""Data and networks that several benchmarks use."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gflow


def digits(count: int) -> tuple[jax.Array, jax.Array]:
    """The first `count` of scikit-learn's digits in a fixed random order; targets one-hot."""
    return _prepared(*gflow.data.digits(), count)


def mnist(count: int) -> tuple[jax.Array, jax.Array]:
    """The first `count` of 5000 MNIST digits in a fixed random order; targets one-hot."""
    return _prepared(*gflow.data.mnist5k(), count)


def _prepared(x: jax.Array, y: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Centred pixel by pixel and divided by the standard deviation of all pixels together.

    Both are those of the whole data set. The unit of the pixels drops out.
    """
    images = np.asarray(x) - np.mean(x, axis=0)
    images /= images.std()
    chosen = np.random.RandomState(0).permutation(len(images))[:count]
    return jnp.asarray(images[chosen]), jax.nn.one_hot(np.asarray(y)[chosen], 10)


def network(sizes: tuple[int, ...], seed: int = 0) -> eqx.nn.MLP:
    """A tanh network with weights uniform in ±1/√fan_in and zero biases."""
    random = np.random.RandomState(seed)
    model = eqx.nn.MLP(
        sizes[0], sizes[-1], sizes[1], len(sizes) - 2, activation=jnp.tanh, key=jax.random.key(0)
    )
    layers = []
    for layer, fan_in, fan_out in zip(model.layers, sizes[:-1], sizes[1:], strict=True):
        weight = random.uniform(-1, 1, (fan_in, fan_out)) / np.sqrt(fan_in)
        random.uniform(size=fan_out)  # this draw only keeps the sequence of published runs
        new = (jnp.asarray(weight.T), jnp.zeros(fan_out))
        layers.append(eqx.tree_at(lambda m: (m.weight, m.bias), layer, new))
    return eqx.tree_at(lambda m: m.layers, model, tuple(layers))


def digits_1000() -> tuple[eqx.nn.MLP, jax.Array, np.ndarray]:
    """A tanh network 64-64-64-10, the first 1000 digits with each pixel standardised, and their labels."""
    x, y = (np.asarray(a)[:1000] for a in gflow.data.digits())
    deviation = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(deviation < 1e-8, 1, deviation)
    return eqx.nn.MLP(64, 10, 64, 2, activation=jnp.tanh, key=jax.random.PRNGKey(0)), jnp.asarray(x), y
