import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import Linear, dense_hessian, problem_of, tanh_network

import gflow
from gflow import _tree


def test_losses_are_their_formulas():
    random = np.random.default_rng(0)
    x, w = random.normal(size=(7, 3)), random.normal(size=3)
    sign = np.where(random.normal(size=7) > 0, 1, -1)
    f = x @ w
    model = Linear(jnp.asarray(w))
    value = lambda loss, y: float(loss(model, (jnp.asarray(x), jnp.asarray(y))))
    y = random.normal(size=7)
    assert value(gflow.losses.Squared(), y) == pytest.approx(0.5 * np.mean((f - y) ** 2), rel=1e-12)
    logistic = np.mean(np.log(1 + np.exp(-sign * f)))
    assert value(gflow.losses.Logistic(), sign) == pytest.approx(logistic, rel=1e-12)
    assert value(gflow.losses.Exponential(), sign) == pytest.approx(np.mean(np.exp(-sign * f)), rel=1e-12)

    matrix = random.normal(size=(4, 3))
    logits, labels = x @ matrix.T, random.integers(0, 4, size=7)
    cross = -np.mean(logits[np.arange(7), labels] - np.log(np.exp(logits).sum(axis=1)))
    many = eqx.nn.Linear(3, 4, use_bias=False, key=jax.random.key(0))
    many = eqx.tree_at(lambda m: m.weight, many, jnp.asarray(matrix))
    data = (jnp.asarray(x), jnp.asarray(labels))
    assert float(gflow.losses.CrossEntropy()(many, data)) == pytest.approx(cross, rel=1e-12)
    two = (jnp.asarray(x), jnp.asarray(random.normal(size=(7, 4))))
    summed = 0.5 * np.mean(np.sum((logits - np.asarray(two[1])) ** 2, axis=1))
    assert float(gflow.losses.Squared()(many, two)) == pytest.approx(summed, rel=1e-12)


def test_tails_neither_overflow_nor_vanish():
    model, data = Linear(jnp.array([800.0])), (np.ones((1, 1)), np.array([1.0]))
    assert float(gflow.losses.Logistic()(model, data)) == 0 or np.exp(-800.0) == 0
    wrong = (np.ones((1, 1)), np.array([-1.0]))
    assert float(gflow.losses.Logistic()(model, wrong)) == pytest.approx(800)
    small = Linear(jnp.array([40.0]))
    assert float(gflow.losses.Logistic()(small, data)) == pytest.approx(np.exp(-40), rel=1e-12)


def test_default_losses():
    model, (x, y) = tanh_network()
    assert isinstance(gflow.Problem(model, (x, y)).loss, gflow.losses.Squared)
    labels = np.arange(30) % 3
    assert isinstance(gflow.Problem(model, (x, labels)).loss, gflow.losses.CrossEntropy)
    with pytest.raises(ValueError, match="loss must be given.*Logistic"):
        gflow.Problem(Linear(jnp.ones(5)), (x, np.where(labels > 0, 1, -1)))


@pytest.mark.parametrize(
    "chunk_size", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 10, 30)), 7, 31]
)
def test_chunks_change_nothing_but_rounding(chunk_size):
    network = tanh_network()
    whole = problem_of(network)
    parts = gflow.Problem(*network, chunk_size=chunk_size)
    params = whole.params
    v = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    results = [
        jax.tree.leaves((p.value(params), p.value_and_gradient(params), p.gradient(params), p.hvp(params, v)))
        for p in (whole, parts)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_chunks_bound_the_memory():
    model = eqx.nn.MLP(50, 1, 64, 2, key=jax.random.key(0))

    def memory(n, chunk_size):
        problem = gflow.Problem(model, (np.ones((n, 50)), np.ones((n, 1))), chunk_size=chunk_size)
        sizes = []
        for f in (lambda p: p.value_and_gradient(p.params), lambda p: p.hvp(p.params, p.params)):
            compiled = eqx.filter_jit(f).lower(problem).compile()
            sizes.append(compiled.compiled.memory_analysis().temp_size_in_bytes)
        return np.array(sizes)

    assert np.all(memory(4000, None) > 3 * memory(1000, None))
    assert np.all(memory(4000, 100) < 1.1 * memory(1000, 100) + 10_000)
    assert np.all(memory(4000, 100) < memory(4000, None) / 5)


def test_hvp_is_the_dense_hessian():
    problem = problem_of(tanh_network())
    hessian = dense_hessian(problem)
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    for i in range(0, len(flat), 17):
        column = problem.hvp(problem.params, unravel(jnp.zeros_like(flat).at[i].set(1.0)))
        np.testing.assert_allclose(
            jax.flatten_util.ravel_pytree(column)[0], hessian[i], rtol=1e-9, atol=1e-12
        )


def test_problem_passes_through_jit_vmap_and_grad():
    network = tanh_network(sizes=(2, 3, 1))
    model, (x, y) = network

    @eqx.filter_jit
    def inside(model, x, y):
        problem = gflow.Problem(model, (x, y), gflow.losses.Squared())
        return problem.value(problem.params)

    problem = problem_of(network)
    np.testing.assert_allclose(inside(model, x, y), problem.value(problem.params), rtol=1e-14)
    scaled = jax.vmap(lambda s: problem.value(jax.tree.map(lambda p: s * p, problem.params)))
    assert scaled(jnp.array([0.5, 1.0, 2.0])).shape == (3,)


def test_static_leaves_and_frozen_leaves():
    class Model(eqx.Module):
        w: jax.Array
        count: int
        table: jax.Array
        activation: object

        def __call__(self, x):
            return self.activation(self.w @ x) * self.count + self.table[0]

    model = Model(jnp.ones(2), 3, jnp.array([1, 2]), jnp.tanh)
    problem = gflow.Problem(model, (np.ones((4, 2)), np.zeros(4)))
    assert problem.size == 2
    assert eqx.tree_equal(problem.model(problem.params), model)
    with pytest.raises(ValueError, match="no trainable leaf"):
        gflow.Problem(model, (np.ones((4, 2)), np.zeros(4)), trainable=lambda leaf: False)


def test_data_take_the_dtype_of_the_parameters():
    model, data = tanh_network(dtype=np.float32)
    problem = gflow.Problem(model, jax.tree.map(lambda a: a.astype(np.float64), data))
    assert {leaf.dtype for leaf in jax.tree.leaves(problem.data)} == {np.dtype(np.float32)}
    assert problem.value(problem.params).dtype == np.float32


def test_a_pytree_of_inputs_and_a_loss_of_ones_own():
    class Sum(eqx.Module):
        w: jax.Array

        def __call__(self, x):
            return self.w * (x["a"] + x["b"])

    data = ({"a": np.ones(3), "b": np.zeros(3)}, np.ones(3))
    assert float(gflow.Problem(Sum(jnp.array(3.0)), data).value(Sum(jnp.array(3.0)))) == 2.0
    bare = gflow.Problem({"theta": jnp.array([3.0])}, None, lambda model, data: jnp.sum(model["theta"] ** 2))
    assert float(bare.value(bare.params)) == 9.0


GOOD_X, GOOD_Y = np.ones((4, 2)), np.ones(4)
NAN_X = np.where(np.eye(4, 2) > 0, np.nan, 1.0)


@pytest.mark.parametrize(
    "data, loss, message",
    [
        ((np.ones((0, 2)), np.ones(0)), None, "at least one example"),
        ((np.ones((4, 2)), np.ones(3)), None, r"same number of examples.*\(4, 2\) and \(3,\)"),
        ((NAN_X, GOOD_Y), None, r"x must be finite.*\(0, 0\)"),
        ((GOOD_X, np.array([1, 1, np.inf, 1])), None, r"y must be finite.*\(2,\)"),
        ((GOOD_X, np.ones((4, 1))), gflow.losses.Squared(), r"shape of the model's output, \(\)"),
        ((GOOD_X, np.ones((4, 1))), None, "loss must be given"),
        ((GOOD_X, np.array([0, 1, 0, 1])), gflow.losses.Logistic(), "labels .1 and -1.*holds 0, 1"),
        ((GOOD_X, np.array([0.5, 1, 1, 1])), gflow.losses.Exponential(), "holds 0.5, 1"),
        ((GOOD_X, np.array([0, 1, 0, 1])), gflow.losses.CrossEntropy(), "at least two logits"),
        ((GOOD_X, np.array(list("abcd"))), gflow.losses.Squared(), "y must be a numeric array"),
        (GOOD_X, None, r"data must be a tuple \(x, y\)"),
        ((GOOD_X, GOOD_Y), lambda m, d: d[1], "loss must return a real scalar"),
        ((GOOD_X, GOOD_Y), lambda m, d: jnp.sum(m.w) * 1j, "loss must return a real scalar"),
        ((GOOD_X, GOOD_Y), lambda m, d: (jnp.sum(m.w), 0), "loss must return a real scalar"),
    ],
)
def test_bad_data_and_losses(data, loss, message):
    with pytest.raises(ValueError, match=message):
        gflow.Problem(Linear(jnp.ones(2)), data, loss)


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.array([0, 1, 2, 3]), "labels from 0 to 2.*runs from 0 to 3"),
        (np.array([-1, 1, 2, 1]), "runs from -1 to 2"),
        (np.array([0.0, 1, 2, 1]), "integer class labels"),
        (np.eye(4, 3, dtype=int), "integer class labels"),
    ],
)
def test_bad_class_labels(labels, message):
    model = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        gflow.Problem(model, (GOOD_X, labels), gflow.losses.CrossEntropy())


def test_bad_models():
    data = (GOOD_X, GOOD_Y)
    with pytest.raises(ValueError, match="no trainable leaf"):
        gflow.Problem(lambda x: x[0], data)
    with pytest.raises(ValueError, match="finite parameters.*w"):
        gflow.Problem(Linear(jnp.array([1.0, np.nan])), data)
    with pytest.raises(ValueError, match="real parameters.*complex"):
        gflow.Problem(Linear(jnp.ones(2, dtype=complex)), data)
    with pytest.raises(ValueError, match="model must be callable"):
        gflow.Problem({"w": jnp.ones(2)}, data)
    with pytest.raises(ValueError, match="model must return one array"):
        gflow.Problem(_Pair(jnp.ones(2)), data)
    with pytest.warns(UserWarning, match="bfloat16.*2-3 digits"):
        gflow.Problem(Linear(jnp.ones(2, dtype=jnp.bfloat16)), data)
    for chunk_size in (0, -1, True):
        with pytest.raises(ValueError, match="chunk_size must be"):
            gflow.Problem(Linear(jnp.ones(2)), data, chunk_size=chunk_size)


class _Pair(Linear):
    def __call__(self, x):
        return x, self.w


def test_random_models_are_refused():
    random = np.random.default_rng(0)

    class Noisy(Linear):
        def __call__(self, x):
            return self.w @ x + random.normal()

    class Callback(Linear):
        def __call__(self, x):
            noise = jax.pure_callback(
                lambda: random.normal(), jax.ShapeDtypeStruct((), np.float64), vmap_method="sequential"
            )
            return self.w @ x * jax.lax.stop_gradient(noise)

    data = (GOOD_X, GOOD_Y)
    for model in (Noisy(jnp.ones(2)), Callback(jnp.ones(2))):
        for run in (lambda m: gflow.integrate(m, data, 1.0), lambda m: gflow.descend(m, data, 0.1, 5)):
            with pytest.raises(ValueError, match="model must be deterministic"):
                run(model)

    class Dropout(eqx.Module):
        linear: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __call__(self, x):
            return self.dropout(self.linear(x))[0]

    model = Dropout(eqx.nn.Linear(2, 1, key=jax.random.key(0)), eqx.nn.Dropout(0.5))
    with pytest.raises(ValueError, match="inference_mode"):
        gflow.integrate(model, data, 1.0)
    assert gflow.integrate(eqx.nn.inference_mode(model), data, 1.0).ok


def test_a_loss_that_is_no_mean_is_refused_in_chunks():
    total = lambda model, data: jnp.sum((jax.vmap(model)(data[0]) - data[1]) ** 2)
    with pytest.raises(ValueError, match="chunk_size.*mean over examples"):
        gflow.integrate(Linear(jnp.zeros(2)), (GOOD_X, GOOD_Y), 1.0, loss=total, chunk_size=2)
    mask = jnp.array([1.0, 1, 1, 1, 0, 0, 0, 1])  # the first examples don't show it
    masked = lambda model, data: jnp.sum(data[2] * jnp.square(data[0] @ model.w - data[1])) / jnp.sum(data[2])
    x = jax.random.normal(jax.random.key(0), (8, 2))
    with pytest.raises(ValueError, match="chunk_size.*mean over examples"):
        gflow.Problem(Linear(jnp.ones(2)), (x, x[:, 0] + 2, mask), masked, chunk_size=4)


def test_the_vector_of_a_tree_holds_its_entries_in_order():
    tree = {"b": jnp.arange(6.0).reshape(2, 3), "a": (jnp.array(7.0), jnp.zeros((0, 2)), -jnp.arange(2.0))}
    flat = _tree.vector(tree)
    np.testing.assert_array_equal(flat, [7, 0, -1, 0, 1, 2, 3, 4, 5])
    assert eqx.tree_equal(_tree.like(tree, flat), tree)
