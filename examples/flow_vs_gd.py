"""Exact gradient flow beside gradient descent on real data, up to the edge of stability.

A tanh network learns 300 of scikit-learn's handwritten digits. Gradient flow and gradient descent
with learning rate η = 0.4 start from the same weights and are recorded at the same times t = ηk.
Descent follows the flow until its sharpness has passed 2/η and its loss begins to rise (the onset);
from there on its sharpness hovers at 2/η while the flow's goes on rising.

    python examples/flow_vs_gd.py [--quick] [--x64] [--output flow_vs_gd.png]
"""

import argparse
from time import perf_counter

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gflow

LEARNING_RATE = 0.4


def digits(count: int) -> tuple[jax.Array, jax.Array]:
    """The first `count` digits in a fixed random order, centred and scaled; targets one-hot."""
    x, y = (np.asarray(a) for a in gflow.data.digits())
    x = x - x.mean(axis=0)
    x = x / x.std()
    chosen = np.random.RandomState(0).permutation(len(x))[:count]
    return jnp.asarray(x[chosen]), jax.nn.one_hot(y[chosen], 10)


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


def table(both: gflow.Comparison) -> str:
    """A few rows of the comparison."""
    marks = {both.crossing: "crossing", both.onset: "onset"}
    last = both.step[-1]
    wanted = {*np.linspace(0, last, 11).astype(int).tolist(), *(k for k in marks if k is not None)}
    lines = ["   step       t   loss: flow   descent   sharpness: flow  descent  distance"]
    for i, k in enumerate(both.step):
        if k in wanted:
            lines.append(
                f"{k:7d} {both.descent.t[i]:7.1f} {both.flow.loss[i]:12.4g} {both.descent.loss[i]:9.4g} "
                f"{both.flow['sharpness'][i]:17.4g} {both.descent['sharpness'][i]:8.4g} "
                f"{both.distance[i]:9.4f}  {marks.get(int(k), '')}"
            )
    return "\n".join(lines)


def main() -> None:
    """Runs the comparison, prints the table, writes the picture."""
    parser = argparse.ArgumentParser(description="Gradient flow beside gradient descent on real data.")
    parser.add_argument("--quick", action="store_true", help="150 steps instead of 500")
    parser.add_argument("--x64", action="store_true", help="in float64 instead of float32")
    parser.add_argument("--output", default="flow_vs_gd.png", help="the picture to write")
    arguments = parser.parse_args()
    if arguments.x64:
        jax.config.update("jax_enable_x64", True)
    began = perf_counter()

    model, data = network((64, 24, 24, 10)), digits(300)
    steps = 150 if arguments.quick else 500
    both = gflow.compare(model, data, learning_rate=LEARNING_RATE, t_max=LEARNING_RATE * steps)

    print(table(both))
    print(f"\nthreshold 2/η = {both.threshold:g}")
    print(f"crossing (sharpness above 2/η): step {both.crossing}")
    print(f"onset (the loss begins to rise): step {both.onset}")
    if both.onset is not None:
        print(f"mean sharpness/(2/η) of descent from the onset on: {both.edge.mean:.3f}")
    for name, path in (("flow", both.flow), ("descent", both.descent)):
        spent = path.stats["gradients"] - path.stats["record_gradients"]
        print(f"gradients spent on the {name}: {spent}")
    gflow.plot.comparison(both).savefig(arguments.output, dpi=200)
    print(f"\n{arguments.output} written after {perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
