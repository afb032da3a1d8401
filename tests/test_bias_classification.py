"""Margins, KKT residuals and their kin against closed forms, numpy, scipy and cvxpy."""

import cvxpy as cp
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from systems import Factors, Linear

import gflow
from gflow import bias


class TwoLayer(eqx.Module):
    """f(x) = Σⱼ vⱼ relu(wⱼ·x) + b."""

    w: jax.Array
    v: jax.Array
    b: jax.Array | None = None

    def __call__(self, x):
        return self.v @ jax.nn.relu(self.w @ x) + (0.0 if self.b is None else self.b)


@pytest.fixture(scope="module")
def separable():
    """Twenty points in three dimensions with labels of a linear teacher, none of them close to its plane."""
    random = np.random.default_rng(3)
    x = random.normal(size=(60, 3))
    x = x[np.abs(x @ [1.0, -2.0, 0.5]) > 1][:20]
    return x, np.sign(x @ [1.0, -2.0, 0.5])


@pytest.fixture(scope="module")
def relu():
    """A random ReLU network without biases."""
    random = np.random.default_rng(5)
    return TwoLayer(jnp.asarray(random.normal(size=(6, 3))), jnp.asarray(random.normal(size=6)))


def max_margin(x, y):
    """The hard-margin separator, min ½‖w‖² subject to yᵢ w·xᵢ ≥ 1, and its multipliers."""
    w = cp.Variable(x.shape[1])
    constraint = cp.multiply(y, x @ w) >= 1
    cp.Problem(cp.Minimize(cp.sum_squares(w) / 2), [constraint]).solve(solver=cp.CLARABEL)
    return w.value, constraint.dual_value


def test_degree_of_homogeneity(relu, separable):
    x = jnp.asarray(separable[0])
    deep = Factors([jnp.eye(3) + 0.1, jnp.eye(3) - 0.2, jnp.ones((1, 3))])
    assert bias.homogeneity_degree(Linear(jnp.ones(3)), x) == pytest.approx(1, abs=1e-12)
    assert bias.homogeneity_degree(relu, x) == pytest.approx(2, abs=1e-12)
    assert bias.homogeneity_degree(deep, x) == pytest.approx(3, abs=1e-12)
    only_v = eqx.tree_at(lambda m: m.v, jax.tree.map(lambda _: False, relu), True)
    assert bias.homogeneity_degree(relu, x, trainable=only_v) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("size", [0.0, 0.3])
def test_margins_of_networks_with_biases_are_refused(relu, separable, size):
    biased = eqx.tree_at(lambda m: m.b, relu, jnp.asarray(size), is_leaf=lambda leaf: leaf is None)
    for yardstick in (bias.parameter_margin, bias.stationarity, bias.slackness):
        with pytest.raises(ValueError, match="homogeneous"):
            yardstick(biased, separable)
    with pytest.raises(Exception, match="homogeneous"):
        jax.block_until_ready(eqx.filter_jit(bias.parameter_margin)(biased, separable))


class Residual(eqx.Module):
    """f(x) = v·(x + relu(Wx) + b), with a skip connection and a bias."""

    w: jax.Array
    v: jax.Array
    b: jax.Array

    def __call__(self, x):
        return self.v @ (x + jax.nn.relu(self.w @ x) + self.b)


@pytest.mark.parametrize("clock", [None, pytest.param(gflow.clocks.LogLoss(), marks=pytest.mark.slow)])
def test_a_run_with_a_refused_margin_says_why_and_runs_without_it(relu, separable, clock):
    biased = eqx.tree_at(lambda m: m.b, relu, jnp.asarray(0.0), is_leaf=lambda leaf: leaf is None)
    model = biased if clock is None else Residual(jnp.eye(3) / 2, jnp.ones(3), jnp.zeros(3))
    run = lambda **observe: gflow.integrate(
        model,
        separable,
        0.1,
        loss=gflow.losses.Exponential(),
        clock=clock,
        save_at=3,
        observe=observe,
        throw=False,
    )
    refused = run(margin=bias.parameter_margin)
    assert refused.status == "error" and "homogeneous" in refused.reason
    fine = run(q=bias.margins)
    assert fine.status == "success" and fine.loss[-1] < fine.loss[0]


def test_residual_networks_are_refused(separable):
    w = jnp.full((3, 3), 0.5)
    residual = lambda w: lambda x: jnp.sum(x + jax.nn.relu(w @ x))
    with pytest.raises(ValueError, match="homogeneous"):
        bias.homogeneity_degree(jax.tree_util.Partial(lambda w, x: residual(w)(x), w), separable[0])


def test_linear_margins(separable):
    x, y = separable
    w = np.array([1.0, -2.0, 0.4])
    q = y * (x @ w)
    model = Linear(jnp.asarray(w))
    np.testing.assert_allclose(bias.margins(model, separable), q, rtol=1e-13)
    for order, size in [(1, np.abs(w).sum()), (2, np.sqrt(w @ w)), (np.inf, np.abs(w).max())]:
        assert bias.linear_margin(model, separable, order) == pytest.approx(q.min() / size, rel=1e-12)
    smooth = -np.log(np.sum(np.exp(-q))) / np.sqrt(w @ w)
    assert bias.linear_margin(model, separable, smooth=True) == pytest.approx(smooth, rel=1e-12)
    np.testing.assert_allclose(bias.duals(model, separable), np.exp(-q) / np.exp(-q).sum(), rtol=1e-12)


def test_margin_of_a_network_that_is_not_linear_in_its_input_is_refused(relu, separable):
    with pytest.raises(ValueError, match="linear in its input"):
        bias.linear_margin(relu, separable)


def test_margins_of_several_logits():
    class Logits(eqx.Module):
        w: jax.Array

        def __call__(self, x):
            return self.w @ x

    random = np.random.default_rng(1)
    w, x, y = random.normal(size=(3, 4)), random.normal(size=(6, 4)), np.array([0, 1, 2, 0, 1, 2])
    f = x @ w.T
    gaps = f[np.arange(6), y][:, None] - f
    others = np.array([np.delete(g, k) for g, k in zip(gaps, y, strict=True)])
    model = Logits(jnp.asarray(w))
    np.testing.assert_allclose(bias.margins(model, (x, y)), others.min(axis=1), rtol=1e-12)
    p = np.exp(-gaps) * (np.arange(3) != y[:, None])
    np.testing.assert_allclose(bias.duals(model, (x, y)), p / p.sum(), rtol=1e-12)
    smooth = -np.log(np.exp(-others).sum()) / np.linalg.norm(w)
    assert bias.parameter_margin(model, (x, y), smooth=True) == pytest.approx(smooth, rel=1e-12)
    pull = np.einsum("ik,id->kd", -p, x)
    np.add.at(pull, y, p.sum(axis=1)[:, None] * x)
    cosine = np.sum(w * pull) / np.linalg.norm(w) / np.linalg.norm(pull)
    assert bias.stationarity(model, (x, y)) == pytest.approx(cosine, rel=1e-12)
    with pytest.raises(ValueError, match="from 0 to 2"):
        bias.margins(model, (x, y + 1))


def test_labels_must_be_plus_or_minus_one(separable):
    with pytest.raises(ValueError, match=r"\+1 and -1"):
        bias.margins(Linear(jnp.ones(3)), (separable[0], (separable[1] + 1) / 2))


def test_parameter_margin(relu, separable):
    x, y = separable
    w, v = np.asarray(relu.w), np.asarray(relu.v)
    q = y * (np.maximum(x @ w.T, 0) @ v)
    square = np.sum(w**2) + np.sum(v**2)
    assert bias.parameter_margin(relu, separable) == pytest.approx(q.min() / square, rel=1e-12)
    smooth = -np.log(np.sum(np.exp(-q))) / square
    assert bias.parameter_margin(relu, separable, smooth=True) == pytest.approx(smooth, rel=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kkt_residuals_vanish_at_the_separator_of_a_quadratic_programme(seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=(20, 3))
    y = np.sign(x @ random.normal(size=3))
    w, multipliers = max_margin(x, y)
    active = np.flatnonzero(multipliers > 1e-6)
    # w scaled up, moved so that the softmax of the margins is the multipliers: then all residuals vanish
    shift = np.linalg.lstsq(
        (y[:, None] * x)[active], -np.log(multipliers[active] / multipliers.sum()), rcond=None
    )[0]
    residuals = []
    for scale in (1e3, 1e4):
        model = Linear(jnp.asarray(scale * w + shift))
        residuals.append([1 - bias.stationarity(model, (x, y)), bias.slackness(model, (x, y))])
    assert np.all(np.asarray(residuals) < [[1e-5, 1e-2], [1e-7, 1e-3]])
    wrong = Linear(jnp.asarray(1e3 * np.roll(w, 1)))
    assert 1 - bias.stationarity(wrong, (x, y)) > 1e-2


def test_slackness_of_a_separator_that_leaves_slack(separable):
    x, y = separable
    w = 3 * max_margin(x, y)[0]
    q = y * (x @ w)
    p = np.exp(-q) / np.exp(-q).sum()
    expected = np.sum(p * (q / q.min() - 1))
    assert bias.slackness(Linear(jnp.asarray(w)), separable) == pytest.approx(expected, rel=1e-9)
    assert np.isnan(bias.slackness(Linear(jnp.asarray(-w)), separable))


def test_reconstruction_residual_is_that_of_nonnegative_least_squares(relu, separable):
    x, y = separable
    w, v = np.asarray(relu.w), np.asarray(relu.v)
    on = (x @ w.T > 0).astype(float)
    rows = [
        np.concatenate([(s * (o * v)[:, None] * z).ravel(), s * o * (w @ z)])
        for z, s, o in zip(x, y, on, strict=True)
    ]
    theta = np.concatenate([w.ravel(), v])
    _, residual = scipy.optimize.nnls(np.array(rows).T, theta)
    expected = residual / np.linalg.norm(theta)
    assert 0.05 < expected < 0.999
    assert bias.reconstruction_residual(relu, separable) == pytest.approx(expected, rel=1e-6)


def test_predictor_of_a_deep_linear_network_and_its_layers():
    random = np.random.default_rng(0)
    matrices = [random.normal(size=s) for s in [(4, 3), (4, 4), (1, 4)]]
    model = Factors([jnp.asarray(m) for m in matrices])
    x = random.normal(size=(7, 3))
    product = matrices[2] @ matrices[1] @ matrices[0]
    np.testing.assert_allclose(bias.linear_predictor(model, (x, None)), product, rtol=1e-12)
    u, s, v = zip(*[np.linalg.svd(m) for m in matrices], strict=True)
    alignment = [abs(v[1][0] @ u[0][:, 0]), abs(v[2][0] @ u[1][:, 0])]
    np.testing.assert_allclose(bias.layer_alignment(model.matrices), alignment, rtol=1e-10)
    assert bias.singular_value_ratio(model.matrices[0]) == pytest.approx(s[0][1] / s[0][0], rel=1e-12)
    assert bias.singular_value_ratio(model.matrices[2]) == 0


def test_nonlinearity_in_closed_form():
    # on a symmetric grid |x| is orthogonal to x, so that relu(x) = x/2 + |x|/2 is half linear
    x = np.linspace(-1, 1, 201)[:, None]
    relu = TwoLayer(jnp.ones((1, 1)), jnp.ones(1))
    assert bias.nonlinearity(relu, x) == pytest.approx(0.5, rel=1e-12)
    np.testing.assert_allclose(bias.linear_fit(relu, x), [0.5], rtol=1e-12)
    assert bias.nonlinearity(Linear(jnp.ones(1)), x) < 1e-30


def test_frequency_norm_of_a_cosine():
    # two frequencies, each of modulus √d/2
    w = np.cos(2 * np.pi * 3 * np.arange(16) / 16)
    assert bias.frequency_norm(w) == pytest.approx(4.0, rel=1e-12)
    assert bias.frequency_norm(w, 0.5) == pytest.approx(8.0, rel=1e-5)  # rounding, under a root


def test_kinks_that_coincide_count_as_one():
    grid = np.linspace(-1, 1, 2001)
    points = np.stack([grid, np.ones_like(grid)], axis=1)

    def hat(places, heights):
        w = np.stack([np.ones(len(places)), -np.asarray(places)], axis=1)
        return TwoLayer(jnp.asarray(w), jnp.asarray(heights, float))

    assert bias.linear_regions(hat([-0.5, 0.5], [1, -1]), points, 0.05) == 3
    assert bias.linear_regions(hat([-0.5, -0.49, 0.5, 0.51], [1, 1, -1, -1]), points, 0.05) == 3
    assert bias.linear_regions(hat([-0.5, -0.4, 0.5], [1, 1, -1]), points, 0.05) == 4
    assert bias.linear_regions(hat([-0.5, 0.0, 0.5], [1, 1e-3, -1]), points, 0.05) == 3  # negligible
    assert bias.linear_regions(Linear(jnp.array([0.3, 0.1])), points, 0.05) == 1


def test_directions(separable):
    angle = 1e-9
    near = jnp.array([3 * np.cos(angle), 3 * np.sin(angle)])
    assert bias.direction_distance(jnp.array([1.0, 0]), near) == pytest.approx(angle, rel=1e-6)
    w, rest = np.array([0.6, 0.8]), np.array([5.0, -1.0])
    increment = bias.increment_direction(jnp.asarray(100 * w + rest), jnp.asarray(200 * w + rest))
    np.testing.assert_allclose(increment, w, rtol=1e-12)
    x, y = separable
    total = (y[:, None] * x).sum(axis=0)
    np.testing.assert_allclose(
        bias.universal_direction((jnp.asarray(x), jnp.asarray(y))), total / np.linalg.norm(total)
    )


def test_radius_at_which_a_linear_classifier_flips(separable):
    x, y = separable
    w, z = np.array([1.0, -2.0, 0.5]), np.array([0.6, -0.8, 0.0])
    radii = bias.flip_radii(Linear(jnp.asarray(w)), (jnp.asarray(x), jnp.asarray(y)), jnp.asarray(z), 1.0)
    exact = y * (x @ w) / (w @ z)
    np.testing.assert_allclose(radii, np.where(exact <= 1, exact, np.inf), rtol=1e-10)
    assert 0 < np.isinf(radii).sum() < 20


def test_coordinate_descent_moves_the_steepest_coordinate():
    transformation = gflow.optimizers.coordinate_descent(0.1)
    gradient = {"a": jnp.array([1.0, -3.0]), "b": jnp.array(2.0)}
    update, _ = transformation.update(gradient, transformation.init(gradient))
    np.testing.assert_allclose(update["a"], [0, 0.1])
    assert update["b"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer, order",
    [
        (gflow.optimizers.coordinate_descent, 1),
        (lambda r: optax.chain(optax.normalize_by_update_norm(eps=0.0), optax.scale_by_learning_rate(r)), 2),
        (optax.sign_sgd, np.inf),
    ],
    ids=["coordinate", "normalised", "sign"],
)
def test_steepest_descent_reaches_the_margin_of_its_norm(separable, optimizer, order):
    x, y = separable
    traj = gflow.descend(
        Linear(jnp.zeros(3)),
        separable,
        optimizer(lambda k: 0.1 / jnp.sqrt(k + 1.0)),
        20_000,
        loss=gflow.losses.Log(gflow.losses.Exponential()),
        save_every=20_000,
        observe={"q": lambda model, data: bias.margins(model, data)},
    )
    w = cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.norm(w, order)), [cp.multiply(y, x @ w) >= 1])
    best = 1 / problem.solve(solver=cp.CLARABEL)
    ratio = float(bias.linear_margin(traj.model, separable, order)) / best
    assert 0.95 < ratio < 1 + 1e-6
    np.testing.assert_allclose(traj["q"][-1], y * (x @ np.asarray(traj.model.w)))


def test_directions_of_adversaries_need_signs(separable):
    x, y = (jnp.asarray(part) for part in separable)
    with pytest.raises(ValueError, match="labels .1 and -1 for universal_direction"):
        bias.universal_direction((x, (y + 1) / 2))
    with pytest.raises(ValueError, match="labels .1 and -1 for flip_radii"):
        bias.flip_radii(Linear(jnp.ones(3)), (x, 2 * y), jnp.ones(3), 1.0)


@pytest.mark.parametrize(
    "quantity",
    [
        bias.linear_margin,
        bias.parameter_margin,
        bias.stationarity,
        lambda m, d: bias.universal_direction(d)[0],
    ],
    ids=["linear", "parameters", "stationarity", "direction"],
)
def test_labels_are_checked_inside_runs(separable, quantity):
    x, y = separable
    loss = lambda model, data: jnp.mean((jax.vmap(model)(data[0]) - data[1]) ** 2)
    options = dict(loss=loss, observe={"q": quantity}, throw=False, save_at=2)
    run = gflow.integrate(Linear(jnp.ones(3)), (x, (y > 0) * 1.0), 1.0, **options)
    assert run.status == "error" and "map the two classes to ±1" in run.reason
    assert gflow.integrate(Linear(jnp.ones(3)), (x, y), 1.0, **options).status == "success"


@pytest.mark.parametrize("cut", [lambda y: y[:, None], lambda y: y[:1], lambda y: y[:7]])
def test_one_label_for_each_example(separable, cut, unchecked):
    x, y = separable
    model = Linear(jnp.ones(3))
    for function in (bias.margins, bias.duals, bias.linear_margin):
        with pytest.raises(ValueError, match="y must hold one label for each of the 20 examples"):
            function(model, (x, cut(y)))
    with pytest.raises(ValueError, match="y must hold one label for each"):
        bias.flip_radii(model, (x, cut(y)), jnp.ones(3), 1.0)


def test_inputs_may_be_integers(separable, unchecked):
    x, y = np.round(4 * separable[0]).astype(int), separable[1]
    model = Linear(jnp.array([1.0, -2.0, 0.5]))
    whole, real = ((x.astype(kind), y) for kind in (int, float))
    assert bias.linear_margin(model, whole) == bias.linear_margin(model, real)
    flips = [bias.flip_radii(model, data, jnp.ones(3), 9.0) for data in (whole, real)]
    np.testing.assert_array_equal(*flips)


def test_what_gives_no_number_is_refused_or_nan(separable, unchecked):
    x, y = separable
    model, broken = Linear(jnp.ones(3)), Linear(jnp.full(3, jnp.nan))
    with pytest.raises(ValueError, match="direction must not be 0"):
        bias.flip_radii(model, (x, y), jnp.zeros(3), 1.0)
    assert np.all(np.isnan(bias.flip_radii(broken, (x, y), jnp.ones(3), 1.0)))
    with pytest.raises(ValueError, match="order must be at least 1, but 0 came"):
        bias.linear_margin(model, (x, y), 0)
    line = jnp.linspace(-jnp.ones(3), jnp.ones(3), 50)
    assert bias.linear_regions(model, line, 0.1) == 1
    with pytest.raises(ValueError, match="model must be finite"):
        bias.linear_regions(broken, line, 0.1)
    with pytest.raises(ValueError, match="at least three inputs"):
        bias.linear_regions(model, line[:2], 0.1)
    with pytest.raises(ValueError, match="evenly spaced"):
        bias.linear_regions(model, line**3, 0.1)
    with pytest.raises(ValueError, match="w must be one-dimensional"):
        bias.frequency_norm(line)
