"""The references of the catalogue against each other, and against numbers of other programs."""

import cvxpy as cp
import numpy as np
import pytest
import references as ref
import scipy.integrate
from a4_matrix_sensing import sensed
from shared import regression

random = np.random.default_rng(0)
X, Y = random.normal(size=(3, 7)), random.normal(size=3)


def test_times_of_the_toy_model_are_those_of_its_equation():
    t = np.linspace(0, 3, 7)
    for depth in (1, 2):
        np.testing.assert_allclose(
            ref.toy_value(depth, t, 0.01, 2.0), ref.toy_path(depth, t, 0.01, 2.0), rtol=1e-8
        )
    for depth in (2, 3, 5, np.inf):
        sigma = np.array([0.3, 1.0, 1.9])
        times = ref.toy_time(depth, sigma, 0.1, 2.0)
        path = ref.toy_path(depth, np.append(0, times), 0.1, 2.0)
        np.testing.assert_allclose(path[1:], sigma, rtol=1e-8)


def test_thresholds_published_and_in_the_equations():
    assert ref.toy_threshold(1.1, 2, 0.1, 0.9) == pytest.approx(-47.0948179, rel=1e-9)
    assert np.exp(ref.toy_threshold(1.5, 3, 0.1, 0.9)) == pytest.approx(4.42370e-3, rel=2e-6)
    assert np.exp(ref.toy_threshold(2.0, 10, 0.1, 0.9)) == pytest.approx(3.96929e-2, rel=2e-6)


def test_dual_newton_solves_the_primal_problem():
    w = ref.hypentropy_limit(X, Y, 0.5)
    np.testing.assert_allclose(X @ w, Y, rtol=1e-12)
    dual = np.arcsinh(w / 0.5)
    np.testing.assert_allclose(X.T @ np.linalg.lstsq(X.T, dual, rcond=None)[0], dual, atol=1e-11)
    start = np.full(7, 0.3)
    target = X @ random.uniform(0.1, 1, 7)
    w = ref.kl_projection(X, target, start)
    v = cp.Variable(7)
    best = cp.Problem(cp.Minimize(cp.sum(cp.kl_div(v, start))), [X @ v == target]).solve(solver=cp.CLARABEL)
    assert np.sum(w * np.log(w / start) - w + start) == pytest.approx(best, abs=1e-6)
    np.testing.assert_allclose(ref.hypentropy_limit(X, Y, 1e6), ref.closest(X, Y, np.zeros(7)), rtol=1e-9)
    l1 = np.abs(ref.smallest_l1(X, Y)).sum()
    assert l1 <= np.abs(ref.deep_hypentropy_limit(X, Y, 1e-3, 3)).sum() < l1 * (1 + 1e-4)


def test_convex_programs():
    assert ref.smallest_frequency_l1(np.eye(4)[:1], np.ones(1)) == pytest.approx(
        2, rel=1e-7
    )  # 1, at k = 0 … 3, halved
    a = np.array([[[1.0, 0], [0, 0]], [[0, 0.5], [0.5, 0]]])
    trace, matrix = ref.smallest_trace(a, np.array([2.0, 1.0]))  # W₁₁ = 2, W₁₂ = 1, so that W₂₂ = ½
    assert trace == pytest.approx(2.5, rel=1e-6) and matrix[1, 1] == pytest.approx(0.5, abs=1e-5)
    w = ref.smallest_relu(np.array([[1.0, 1.0], [0.0, -1.0]]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(w, [0.5, 0.5], atol=1e-6)
    matrix = random.normal(size=(3, 3))
    v = cp.Variable((3, 3))
    cp.Problem(cp.Minimize(cp.sum_squares(v - matrix) / 2 + 0.4 * cp.normNuc(v))).solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(ref.shrunk(matrix, 0.4), v.value, atol=1e-5)


def test_closed_forms_of_paths():
    t = np.array([0.0, 0.3, 1.0])
    start = random.normal(size=7)
    path = scipy.integrate.solve_ivp(
        lambda _, w: -X.T @ (X @ w - Y), (0, 1), start, t_eval=t, rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(ref.least_squares_path(X, Y, start, t), path.y.T, atol=1e-8)
    np.testing.assert_allclose(ref.kernel_flow(X, X, Y, 1e3), Y, rtol=1e-9)
    hidden = ref.hidden_entry_path(np.array([1e2, 1e3, 3e3, 1e4]), 0.1)
    np.testing.assert_allclose(hidden, [7.8546, 17.900, 26.019, 39.022], rtol=1e-4)
    assert ref.bridge_minimum(3.0, 0.5, 3) == pytest.approx(
        3 - 0.5 * ref.bridge_minimum(3.0, 0.5, 3) ** (-1 / 3)
    )
    x = random.normal(size=5)
    assert x @ ref.convolutional_limit(x, -0.7, 0.1) == pytest.approx(-0.7, rel=1e-12)
    z = ref.inverse_of(np.tanh, np.array([0.3, -0.9]))
    np.testing.assert_allclose(np.tanh(z), [0.3, -0.9], rtol=1e-12)


def test_data_that_leave_no_choice_are_refused():
    for make in (lambda: regression(0, n=12, d=12), lambda: sensed(0, 3, d=3, n=9)):
        with pytest.raises(ValueError, match="fewer observations than the"):
            make()
