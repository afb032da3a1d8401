"""What the literature says of descent with a large step: where it can end, and how sharp that is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import Factors, Linear, dense_hessian, problem_of

import gflow
from gflow import observe

ROOT = Path(__file__).parents[1]


class Product(Linear):
    """f = ab; with the target 1, L = (ab − 1)²/2, whose minima have the sharpness a² + b²."""

    def __call__(self, x):
        return self.w[0] * self.w[1] * x[0]


@pytest.mark.filterwarnings("ignore:member:UserWarning")  # of those that end above their start
@pytest.mark.slow
def test_descent_converges_to_no_minimum_sharper_than_its_threshold():
    # Wu, Ma and E, NeurIPS 2018
    rate, starts = 0.2, np.random.default_rng(0).normal(scale=2.0, size=(1000, 2))
    data = (np.ones((1, 1)), np.ones(1))
    members = Product(jnp.asarray(starts))
    ends = gflow.descend(members, data, rate, 4000, save_every=4000, ensemble=True, throw=False)
    assert set(ends.statuses) == {"success", "diverged"}
    converged = ends.end["loss"] < 1e-20
    sharpness = np.sum(np.asarray(ends.model.w) ** 2, axis=1)[converged]
    assert np.sum(converged) > 700
    assert sharpness.max() <= 2 / rate * (1 + 1e-9)
    assert sharpness.max() > 0.95 * 2 / rate  # and the bound is tight
    # a quarter of a per mille beside a minimum that is too sharp, gradient flow stays and descent leaves
    sharp = np.array([3.5, 1.00025 / 3.5])
    flow = gflow.integrate(Product(jnp.asarray(sharp)), data, 50.0, rtol=1e-8, atol=1e-12)
    descent = gflow.descend(Product(jnp.asarray(sharp)), data, rate, 4000, observe=[observe.Sharpness()])
    assert np.sum(np.square(flow.model.w)) > 12 and flow.loss[-1] < 1e-12
    assert descent.loss[-1] < 1e-20
    np.testing.assert_allclose(descent["sharpness"][-1], np.sum(np.square(descent.model.w)), rtol=1e-6)
    assert 2 < descent["sharpness"][-1] <= 2 / rate


@pytest.mark.parametrize(
    "depth, flattest",
    [(2, 6.0), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((3, 12.98025), (4, 20.78461)))],
)
def test_the_flattest_minimum_of_a_deep_linear_network_is_balanced(depth, flattest):
    # Mulayoff and Michaeli, ICML 2020: with whitened data the sharpness of a minimum is at least k s₁^(2−2/k)
    random = np.random.default_rng(depth)
    target = np.diag([3.0, 1.5, 0.5])
    data = (np.sqrt(3) * np.eye(3), np.sqrt(3) * target)  # so that L = ½‖W_k … W_1 − T‖²
    balanced = [jnp.asarray(np.diag(np.diag(target) ** (1 / depth)))] * depth
    np.testing.assert_allclose(depth * 3.0 ** (2 - 2 / depth), flattest, rtol=1e-6)
    found = gflow.sharpness(Factors(balanced), data)
    np.testing.assert_allclose(found.value, flattest, rtol=1e-6)
    # W_j → G_{j+1}⁻¹ W_j G_j, with G_1 = G_{k+1} = 1, keeps the product
    for trial in range(20):
        between = [np.eye(3) + 0.5 * random.normal(size=(3, 3)) for _ in range(depth - 1)]
        gauge = [np.eye(3), *between, np.eye(3)]
        factors = [
            jnp.asarray(np.linalg.solve(gauge[j + 1], np.asarray(balanced[j]) @ gauge[j]))
            for j in range(depth)
        ]
        product = np.linalg.multi_dot([np.asarray(w) for w in reversed(factors)])
        np.testing.assert_allclose(product, target, atol=1e-8)
        unbalanced = gflow.sharpness(Factors(factors), data).value
        assert unbalanced > flattest * (1 + 1e-6)
        if trial == 0:
            hessian = dense_hessian(problem_of((Factors(factors), data)))
            np.testing.assert_allclose(unbalanced, np.linalg.eigvalsh(hessian)[-1], rtol=1e-6)


def small_network(seed):
    """A tanh network 4-24-1 and 20 examples."""
    random = np.random.RandomState(seed)
    x = random.randn(20, 4)
    y = np.sin(2 * x[:, :1]) + 0.5 * random.randn(20, 1)
    model = eqx.nn.MLP(4, 1, 24, 1, activation=jnp.tanh, key=jax.random.key(0))
    leaves = lambda m: [leaf for layer in m.layers for leaf in (layer.weight, layer.bias)]
    drawn = [random.randn(24, 4) / 2, np.zeros(24), random.randn(1, 24) / np.sqrt(24), np.zeros(1)]
    return eqx.tree_at(leaves, model, [jnp.asarray(a) for a in drawn]), (x, y)


@pytest.mark.slow
def test_descent_ends_just_below_its_threshold_where_the_flow_ends_above():
    # Cohen et al., ICLR 2021
    model, data = small_network(2)
    seen = [observe.Sharpness()]
    flow = gflow.integrate(model, data, 2400.0, save_at=9, observe=seen)
    rises = {}
    for rate in (0.05, 0.3, 0.5):
        descent = gflow.descend(model, data, rate, 8000, save_every=2000, observe=seen)
        assert descent.loss[-1] < 1e-3 * descent.loss[0]
        rises[rate] = np.sum(np.diff(descent.step_loss) > 0)
        if rate > 0.05:
            assert 0.98 * 2 / rate <= descent["sharpness"][-1] <= 2 / rate < flow["sharpness"][-1]
    assert rises[0.05] == 0 and rises[0.3] > 50 and rises[0.5] > 500
    with pytest.raises(gflow.FlowError, match="diverged.*smaller learning rate"):
        gflow.descend(model, data, 0.8, 8000)


FOLDER = ROOT / "docs" / "edge_of_stability"


def test_the_stored_numbers_put_every_optimiser_at_its_threshold():
    rows = json.loads((FOLDER / "edge_of_stability.json").read_text(encoding="utf-8"))["results"][
        "optimizers"
    ]
    allowed = {"gradient descent": 0.05, "Polyak": 0.05, "Nesterov": 0.05, "RMSProp": 0.1, "Adam": 0.05}
    seeds = {(row["data"], row["optimizer"], row["seed"]) for row in rows}
    assert seeds == {(data, name, i) for data in ("digits", "MNIST-5k") for name in allowed for i in range(3)}
    for row in rows:
        assert abs(row["mean"] - 1) <= allowed[row["optimizer"]], row


@pytest.mark.slow
def test_the_example_reaches_the_edge(tmp_path):
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "examples" / "edge_of_stability.py", "--quick", "--output", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / "edge_of_stability.json").read_text(encoding="utf-8"))
    assert {"command", "date", "machine", "versions"} <= stored.keys()
    numbers = stored["results"]
    means = {row["optimizer"]: row["mean"] for row in numbers["optimizers"]}
    assert len(means) == 5 and all(0.9 < mean < 1.1 for mean in means.values())
    assert abs(means["gradient descent"] - 1) < 0.05 and abs(means["Adam"] - 1) < 0.05
    assert numbers["onset"]["alternation"] > 0.9 and numbers["onset"]["midpoint_loss"] < 0.95
    both = numbers["flow"][0]
    assert both["onset"] and both["highest_sharpness_of_flow"] > both["threshold"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}
