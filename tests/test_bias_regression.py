"""Yardsticks of regression against closed forms, published numbers, scipy and scikit-learn."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate
from sklearn.linear_model import OrthogonalMatchingPursuit
from systems import hypentropy_limit

import gflow
from gflow import bias, models


def test_norms_and_ranks():
    w = jnp.array([3.0, 0.0, -4.0])
    assert float(bias.lp_norm(w, 1)) == 7 and float(bias.lp_norm(w, 2)) == 5
    assert float(bias.lp_norm(w, 2 / 3)) == pytest.approx((3 ** (2 / 3) + 4 ** (2 / 3)) ** 1.5, rel=1e-14)
    assert float(bias.lp_norm(1e-200 * w, 2)) == pytest.approx(5e-200) and float(bias.lp_norm(0 * w, 1)) == 0
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    matrix = jnp.asarray(q @ np.diag([4.0, -2.0, 0.0]))
    assert float(bias.nuclear_norm(matrix)) == pytest.approx(6, rel=1e-14)
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert float(bias.effective_rank(matrix)) == pytest.approx(math.exp(entropy), rel=1e-12)
    assert float(bias.effective_rank(jnp.eye(4))) == pytest.approx(4)
    assert float(bias.effective_rank(0 * matrix)) == 0
    net = models.TwoLayer.balanced(3, 5, 1.0, key=jax.random.key(0))
    half = float(jnp.sum(net.w**2) + jnp.sum(net.v**2)) / 2
    assert float(bias.variation_norm(net.w, net.v)) == pytest.approx(half, rel=1e-12)
    with pytest.raises(ValueError, match="order must be"):
        bias.lp_norm(w, 0)


POTENTIALS = [bias.Hypentropy(0.3), *(bias.DeepHypentropy(0.3, depth) for depth in (3, 4, 7))]


@pytest.mark.parametrize("potential", POTENTIALS)
def test_potentials_and_their_maps(potential):
    gradient, value = eqx.filter_jit(potential.gradient), eqx.filter_jit(potential)
    w = jnp.asarray([-3.0, -1e-3, 1e-12, 1e-4, 0.2, 50.0])
    np.testing.assert_allclose(potential.inverse(gradient(w)), w, rtol=1e-11)
    np.testing.assert_allclose(gradient(w), -gradient(-w), rtol=1e-15)
    assert float(value(0 * w)) == 0
    of_one = lambda v: float(gradient(jnp.full(6, v))[0])  # one shape, one compilation
    for end in (1e-3, 0.2, 50.0):
        integral = scipy.integrate.quad(of_one, 0, end, epsrel=1e-11)[0]
        assert float(value(jnp.full(6, end))) == pytest.approx(6 * integral, rel=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_limit_of_a_diagonal_network_has_a_gradient_in_the_row_space(seed):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(3, 6)), random.normal(size=3)
    z = np.asarray(bias.Hypentropy(0.1).gradient(jnp.asarray(hypentropy_limit(x, y, 0.1))))
    np.testing.assert_allclose(x.T @ np.linalg.lstsq(x.T, z, rcond=None)[0], z, atol=1e-9)


def test_arguments_of_the_potentials():
    for make in (bias.Hypentropy, lambda alpha: bias.DeepHypentropy(alpha, 3)):
        for alpha in (0.0, -1.0, math.inf):
            with pytest.raises(ValueError, match="alpha must be"):
                make(alpha)
    with pytest.raises(ValueError, match="depth must be"):
        bias.DeepHypentropy(0.1, 2)


# s = 0.1, f = 0.9: ln x_th for depth 2, x_th above
THRESHOLDS = {
    1.1: {2: -47.0948179, 3: 9.20404e-5, 4: 6.73932e-4, 10: 3.87663e-3, math.inf: 7.37694e-3},
    1.5: {2: -11.7970656, 3: 4.42370e-3, 4: 1.01591e-2, 10: 2.25067e-2, math.inf: 3.04626e-2},
    2.0: {2: -7.2858491, 3: 1.44763e-2, 4: 2.40737e-2, 10: 3.96929e-2, math.inf: 4.80382e-2},
}


@pytest.mark.parametrize("ratio", THRESHOLDS)
def test_thresholds_of_incremental_learning(ratio):
    for depth, expected in THRESHOLDS[ratio].items():
        found = bias.incremental_threshold(ratio, depth)
        value = found.log_value if depth == 2 else found.value
        assert value == pytest.approx(expected, rel=5e-6 if depth > 2 else 5e-9)
        assert found.log_lower < found.log_value < found.log_upper


def test_the_threshold_of_depth_two_solves_its_equation():
    for r, s, f in [(1.001, 0.1, 0.9), (1.05, 0.2, 0.76), (3.0, 0.01, 0.999)]:
        log_x = bias.incremental_threshold(r, 2, s, f).log_value
        x = math.exp(log_x)
        right = r * math.log(s / (1 - s)) + math.log((1 - f) / f) + r * math.log1p(-x) - math.log(r - x)
        assert (r - 1) * log_x == pytest.approx(right, rel=1e-11)


def test_the_threshold_in_the_differential_equations():
    # at the time when the larger value has reached f of its target, the smaller one is at s
    r, s, f, depth = 1.7, 0.15, 0.8, 3
    start = bias.incremental_threshold(r, depth, s, f).value
    target = np.array([r, 1.0])
    reached = lambda t, u: u[0] - f * r
    reached.terminal = True
    path = scipy.integrate.solve_ivp(
        lambda t, u: u ** (2 - 2 / depth) * (target - u),
        (0, 1e4),
        [start] * 2,
        rtol=1e-11,
        atol=1e-14,
        events=reached,
    )
    assert path.y[1, -1] == pytest.approx(s, rel=1e-7)


def test_the_threshold_falls_by_a_power_of_the_gap_that_depth_sets():
    for depth, slope in [(3, 2.9988), (4, 1.9995), (10, 1.24994), (math.inf, 1.0002)]:
        near, far = (bias.incremental_threshold(1 + gap, depth).log_value for gap in (1e-4, 1e-3))
        assert (far - near) / math.log(10) == pytest.approx(slope, abs=1e-4)


def test_depth_one_is_never_incremental():
    assert bias.incremental_threshold(2.0, 1) == (-math.inf,) * 3
    assert bias.incremental_threshold(2.0, 1).value == 0
    t = np.linspace(0, 20, 2001)[:, None]
    target = np.array([12.0, 6.0, 3.0])
    assert not bias.is_incremental(target + (1e-9 - target) * np.exp(-t), target).any()


def test_incremental_learning_and_times_along_a_path():
    # depth 2 in closed form
    t, target, start = np.linspace(0, 10, 4001), np.array([12.0, 6.0, 4.0, 3.0]), 1e-3
    sigma = start * target / (start + (target - start) * np.exp(-np.outer(t, target)))
    np.testing.assert_array_equal(bias.is_incremental(sigma, target, 0.1, 0.9), [True, False, False])
    for i, (larger, smaller) in enumerate(zip(target[:-1], target[1:], strict=True)):
        threshold = smaller * bias.incremental_threshold(larger / smaller, 2).value
        assert bias.is_incremental(sigma, target)[i] == (start <= threshold)
    exact = np.log((target - start) / start) / target
    np.testing.assert_allclose(bias.half_times(t, sigma, target), exact, rtol=1e-4)
    np.testing.assert_allclose(bias.half_times(t, sigma), exact, rtol=1e-4)
    reached = np.isfinite(bias.passage_times(t, sigma, np.array([1e-3, 5.9, 7.0, 2.0])))
    np.testing.assert_array_equal(reached, [True, True, False, True])
    assert bias.passage_times(t, sigma, 1e-4)[0] == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1.0, 3), "ratio must be"),
        ((2.0, 0.5), "depth must be"),
        ((2.0, 1.5), "depth must be"),
        ((2.0, 3, 0.25), "s must lie"),
        ((2.0, 3, 0.1, 0.75), "f must lie"),
        ((2.0, 3, 0.1, 1.0), "f must lie"),
    ],
)
def test_parameters_outside_the_theorem(arguments, message):
    with pytest.raises(ValueError, match=message):
        bias.incremental_threshold(*arguments)


def test_targets_that_do_not_decrease():
    for target in ([1.0, 1.0], [1.0, 2.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="targets must be"):
            bias.is_incremental(np.ones((3, 2)), np.array(target))


def test_a_target_for_each_value():
    for k in (1, 3):
        with pytest.raises(ValueError, match=r"shapes \(records, k\) and \(k,\), but these are \(5, 2\)"):
            bias.is_incremental(np.ones((5, 2)), np.arange(k, 0.0, -1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_orthogonal_matching_pursuit(seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=(30, 80))
    y = x[:, :6] @ (1 + random.exponential(10, size=6)) + random.normal(size=30)
    found = bias.orthogonal_matching_pursuit(x, y, 8)
    reference = OrthogonalMatchingPursuit(n_nonzero_coefs=8, fit_intercept=False).fit(
        x / np.linalg.norm(x, axis=0), y
    )
    assert sorted(found) == list(np.flatnonzero(reference.coef_))
    assert len(bias.orthogonal_matching_pursuit(x, 2 * x[:, 5], 8)) == 1


def test_agreement_of_supports():
    assert bias.support_agreement([1, 2, 3], np.array([3, 2, 7, 9])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="empty"):
        bias.support_agreement([1], [])
    with pytest.raises(ValueError, match="size must be"):
        bias.orthogonal_matching_pursuit(np.ones((3, 5)), np.ones(3), 4)


@pytest.mark.slow
def test_greedy_low_rank_learning_finds_the_rank_one_completion():
    # observed: (1,3) = 1, (1,4) = R, (2,3) = R; the least nuclear norm would be 4R, at rank 2
    r = 3.0
    mask, observed = np.zeros((4, 4), bool), np.zeros((4, 4))
    for i, j, value in [(0, 2, 1.0), (0, 3, r), (1, 2, r)]:
        mask[i, j] = mask[j, i] = True
        observed[i, j] = observed[j, i] = value
    found = bias.greedy_low_rank(lambda x: jnp.sum(jnp.where(mask, x - observed, 0) ** 2) / 4, 4)
    v = np.array([1, r, 1, r])
    assert found.converged and len(found.matrices) == 2
    assert found.eigenvalues[0] == pytest.approx((1 + math.sqrt(1 + 4 * r**2)) / 4, rel=1e-12)
    np.testing.assert_allclose(found.matrices[1], np.outer(v, v), atol=1e-9)


def test_greedy_low_rank_learning_visits_the_truncations():
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    values = np.array([3.0, 2.0, 1.0, 0.0])
    target = q * values @ q.T
    found = bias.greedy_low_rank(lambda x: jnp.sum((x - target) ** 2) / 2, 4)
    assert found.converged and len(found.matrices) == 4
    for rank, matrix in enumerate(found.matrices):
        np.testing.assert_allclose(matrix, q[:, :rank] * values[:rank] @ q[:, :rank].T, atol=1e-8)
    np.testing.assert_allclose(found.eigenvalues, values, atol=1e-8)


# A 2 x 2 completion: W12 = W21 = 1 and W22 = 0 are observed, det W keeps its sign and decays.
ENTRIES = (np.array([[0, 1], [1, 0], [1, 1]]), np.array([1.0, 1.0, 0.0]))


SIGN = gflow.observe.ConservedSign("det", lambda m, _: jnp.linalg.det(m.effective()), limit=1e-6)
BALANCE = gflow.observe.Conserved("balance", lambda m, _: bias.balancedness(m.factors[::-1]), limit=1e-4)


def completion(model, t_max, watched):
    return gflow.integrate(model, ENTRIES, t_max, rtol=1e-8, atol=1e-12, observe=[watched], save_at=11)


def test_a_sign_that_rounding_may_flip_is_flagged():
    with pytest.warns(UserWarning, match="det lost its sign"):
        late = completion(models.Factorisation.identity(2, 2, 0.1), 3e3, SIGN)
    assert 0.1**4 == pytest.approx(late["det"][0])
    assert late.ok and len(late.warnings) == 1 and abs(late["det"][-1]) < 1e-6


def test_a_flow_conserves_what_descent_with_long_steps_does_not():
    model = models.Factorisation([jnp.array([[1.0, 0.3], [-0.2, 0.8]]), jnp.array([[0.5, 0.1], [0.4, 0.9]])])
    flow = completion(model, 5.0, BALANCE)
    assert flow.warnings == () and 0 < flow["balance"].max() < 1e-6
    with pytest.warns(UserWarning, match="balance drifted beyond its limit"):
        descent = gflow.descend(model, ENTRIES, 0.5, 10, observe=[BALANCE])
    matrices = lambda m: [np.asarray(f) for f in m.factors]
    drift = [
        matrices(m)[0].T @ matrices(m)[0] - matrices(m)[1] @ matrices(m)[1].T for m in (model, descent.model)
    ]
    assert descent["balance"][-1] == pytest.approx(np.linalg.norm(drift[1] - drift[0]), rel=1e-12)


def test_limits_of_conserved_quantities():
    for kind in (gflow.observe.Conserved, gflow.observe.ConservedSign):
        with pytest.raises(ValueError, match="limit must be"):
            kind("c", lambda m, _: m.factors[0], -1.0)


def test_balancedness():
    layers = [np.random.default_rng(0).normal(size=s) for s in [(4, 3), (5, 4), (2, 5)]]
    found = bias.balancedness([jnp.asarray(w) for w in layers])
    for j, matrix in enumerate(found):
        np.testing.assert_allclose(
            matrix, layers[j + 1].T @ layers[j + 1] - layers[j] @ layers[j].T, atol=1e-13
        )
    with pytest.raises(ValueError, match="at least two"):
        bias.balancedness([jnp.eye(2)])


@pytest.mark.parametrize("depth", [3, 6, 10, 20])
def test_deep_potentials_of_large_predictors(depth):
    # Q(w) = w z − αᴰ H(z) with 150 digits; 1 − z is below rounding for depths of 6 and more
    with mpmath.workdps(150):
        alpha, w, power = mpmath.mpf(1) / 1000, mpmath.mpf("0.7"), mpmath.mpf(depth) / (depth - 2)
        # as a function of the logarithm of 1 − z the equation is nearly linear
        solve = lambda x: power * -x - mpmath.log(w / alpha**depth + (2 - mpmath.exp(x)) ** -power)
        z = 1 - mpmath.exp(mpmath.findroot(solve, -mpmath.log(w / alpha**depth) / power))
        h = (depth - 2) / mpmath.mpf(2) * ((1 - z) ** (1 - power) + (1 + z) ** (1 - power) - 2)
        exact = float(w * z - alpha**depth * h)
    found = bias.DeepHypentropy(1e-3, depth)(jnp.array([0.7, -0.7]))
    assert float(found) == pytest.approx(2 * exact, rel=1e-12)


def test_what_has_no_rank_or_norm(unchecked):
    assert np.isnan(bias.effective_rank(jnp.eye(3).at[0, 1].set(jnp.nan)))
    with pytest.raises(ValueError, match="w and v must have shapes"):
        bias.variation_norm(jnp.ones((4, 2)), jnp.ones((4, 1)))
    with pytest.raises(ValueError, match="reverse them"):
        bias.balancedness([jnp.ones((1, 6)), jnp.ones((6, 5))])


def test_pursuit_and_masks_of_odd_input(unchecked):
    x, y = np.random.default_rng(0).normal(size=(6, 4)), np.arange(6)
    assert 2 not in bias.orthogonal_matching_pursuit(np.where(np.arange(4) == 2, 0, x), y, 3)
    with pytest.raises(ValueError, match="x and y must be finite and have shapes"):
        bias.orthogonal_matching_pursuit(x, np.where(y == 3, np.nan, y), 2)
    with pytest.raises(ValueError, match="but these are .6, 4. and .5,."):
        bias.orthogonal_matching_pursuit(x, y[:5], 2)
    mask = np.array([True, True, False, False])
    assert bias.support_agreement(mask, ~mask) == 0 and bias.support_agreement(mask, [0, 1]) == 1
    t = np.arange(3.0)
    for values in (t, np.ones((2, 1)), np.ones((0, 1))):
        with pytest.raises(ValueError, match="t and values must have shapes"):
            bias.half_times(t, values)
    with pytest.raises(ValueError, match="some are NaN"):
        bias.passage_times(t, np.array([[0.0], [np.nan], [1.0]]), 0.5)


def test_a_threshold_very_near_to_equal_targets():
    # N = 2, r → 1: (1 − 1/r)(−log x) tends to B, nearly all from the constant part
    found = bias.incremental_threshold(1 + 1e-7, 2)
    r, s, f = 1 + 1e-7, 0.1, 0.9
    needed = (math.log(f / (1 - f)) - math.log(s / (r - s))) / r
    assert found.log_value * (1 - 1 / r) == pytest.approx(-needed, rel=1e-5)
    assert found.log_lower <= found.log_value <= found.log_upper


@pytest.mark.slow
def test_an_objective_without_minimum_is_said():
    with pytest.raises(RuntimeError, match="did not come to rest|not finite"):
        bias.greedy_low_rank(lambda x: -jnp.sum(x), 3)
