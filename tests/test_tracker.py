"""Eigenpairs tracked along paths of known matrices, and along descent at the edge of stability."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

import gflow
from gflow.curvature import follow, start_track

arpack: Any = scipy.sparse.linalg  # its inline types don't know LinearOperator(shape, matvec)
SIZE = 40


def quadratic(matrix):
    """L(θ) = ½ θᵀAθ: the path of points may be any, the Hessian is A."""
    model = {"θ": jnp.ones(len(matrix), matrix.dtype)}
    return gflow.Problem(model, matrix, lambda model, a: 0.5 * model["θ"] @ a @ model["θ"])


@eqx.filter_jit
def tracked(matrices, points, k, rtol, max_hvps):
    """Eigenpairs along a path, as arrays over records."""
    problem = quadratic(matrices[0])

    def record(track, now):
        matrix, point = now
        here = eqx.tree_at(lambda p: p.data, problem, matrix)
        pairs, track = follow(here, {"θ": point}, track, k, rtol=rtol, max_hvps=max_hvps)
        return track, pairs

    return jax.lax.scan(record, start_track(problem, k), (matrices, points))[1]


def along(matrices, points, k=1, max_hvps=1000):
    """`tracked` with the errors of its eigenvalues, relative to the largest."""
    pairs = tracked(jnp.asarray(matrices), jnp.asarray(points), k, jnp.array(1e-5), jnp.array(max_hvps))
    exact = np.stack([np.linalg.eigvalsh(np.nan_to_num(a))[::-1][:k] for a in matrices])
    return pairs, np.abs(pairs.values - exact) / np.maximum(np.abs(exact[:, :1]), 1e-300)


def rotating(angles, seed, eigenvalues):
    """A(t) = R(t) diag(λ) R(t)ᵀ with R(t) = exp(t S), S skew."""
    s = np.random.default_rng(seed).normal(size=(SIZE, SIZE))
    s = (s - s.T) / np.sqrt(SIZE)
    turns = [scipy.linalg.expm(t * s) for t in angles]
    return np.stack([r @ np.diag(eigenvalues) @ r.T for r in turns])


def fixed(eigenvalues, seed=0):
    """Matrices with these eigenvalues, one row each, all with the same eigenvectors."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))
    return np.einsum("ij,tj,kj->tik", q, np.asarray(eigenvalues), q)


SPECTRUM = np.append(np.linspace(-1, 2, SIZE - 4), [3.0, 4.0, 4.8, 5.0])
RECORDS = 240
SOMEWHERE = np.random.default_rng(7).normal(size=(2, SIZE))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("k, most", [(1, 3), pytest.param(3, 7, marks=pytest.mark.slow)])
def test_a_smooth_path_takes_few_products(seed, k, most):
    t = 0.005 * np.arange(RECORDS)
    points = SOMEWHERE[0] + t[:, None] * SOMEWHERE[1]
    pairs, error = along(rotating(t, seed, SPECTRUM), points, k)
    assert np.all(pairs.converged) and error.max() <= 1e-4 and np.median(error) <= 1e-5
    usual = np.asarray(pairs.hvps)[1:]
    assert np.median(usual) <= most and usual.mean() <= most + 1
    alternating = np.where(np.arange(RECORDS) % 2, 1, -1) * (0.05 + 3e-4 * np.arange(RECORDS))
    points = SOMEWHERE[0] + alternating[:, None] * SOMEWHERE[1]
    pairs, error = along(rotating(alternating, seed, SPECTRUM), points, k)
    assert np.all(pairs.converged) and error.max() <= 1e-4
    assert np.median(np.asarray(pairs.hvps)[1:]) <= most  # the two-cycle is predicted as well


@pytest.mark.slow
def test_residuals_and_vectors_are_those_of_the_matrix():
    t = 0.01 * np.arange(RECORDS)
    matrices = rotating(t, 0, SPECTRUM)
    pairs, _ = along(matrices, SOMEWHERE[0] + t[:, None] * SOMEWHERE[1], 3)
    vectors = np.asarray(pairs.vectors["θ"])
    gram = vectors @ vectors.swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-10)
    values = np.asarray(pairs.values)[..., None]
    residuals = np.linalg.norm(vectors @ matrices - values * vectors, axis=2)
    np.testing.assert_allclose(pairs.residuals, residuals, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_another_eigenvalue_overtakes_from_an_orthogonal_direction(seed):
    # nothing in the Hessian couples the eigenvectors: the residual of the old one stays zero
    rows = np.tile(SPECTRUM, (RECORDS, 1))
    rows[:, -2] = np.linspace(4.2, 6.0, RECORDS)
    pairs, error = along(fixed(rows, seed), np.zeros((RECORDS, SIZE)))
    assert np.all(pairs.converged) and error.max() <= 1e-5
    # one that was not tracked, from deep below and in one jump: found by a search
    rows = np.tile(SPECTRUM, (RECORDS, 1))
    rows[30:, 3] = 6.0
    pairs, error = along(fixed(rows, seed), np.zeros((RECORDS, SIZE)))
    wrong = np.flatnonzero(error > 1e-5)
    # a search takes about a dozen products, and is due when 16 times that has been spent
    assert wrong.size > 0 and np.asarray(pairs.hvps)[wrong].sum() <= 240
    assert error[-50:].max() <= 1e-5


@pytest.mark.slow
def test_repeated_eigenvalues_and_a_zero_hessian():
    rows = np.tile(np.append(np.linspace(-1, 2, SIZE - 3), [5.0, 5.0, 5.0]), (RECORDS, 1))
    for k in (1, 3):
        pairs, error = along(fixed(rows), np.zeros((RECORDS, SIZE)), k)
        assert np.all(pairs.converged) and error.max() <= 1e-5
        assert np.asarray(pairs.hvps)[1:].mean() <= k + 3
    pairs, _ = along(np.zeros((RECORDS, SIZE, SIZE)), np.zeros((RECORDS, SIZE)), 3)
    assert np.all(pairs.values == 0) and np.all(pairs.residuals == 0) and np.all(pairs.converged)


def test_what_is_not_finite_is_said_and_forgotten():
    matrices = np.tile(fixed(SPECTRUM[None]), (RECORDS, 1, 1))
    matrices[20] = np.nan
    pairs, error = along(matrices, np.zeros((RECORDS, SIZE)))
    assert np.isnan(pairs.values[20, 0]) and not pairs.converged[20]
    assert error[[19, 21, -1]].max() <= 1e-5 and pairs.converged[21]


def test_the_budget_is_kept_and_what_it_can_not_reach_is_said():
    matrices = rotating(0.5 * np.arange(RECORDS), 0, np.linspace(0, 1, SIZE))
    pairs, _ = along(matrices, np.zeros((RECORDS, SIZE)), max_hvps=5)
    assert np.asarray(pairs.hvps).max() <= 5 and not np.any(pairs.converged)
    assert np.all(np.asarray(pairs.residuals) > 1e-3)
    with pytest.raises(ValueError, match="k must lie in 1..40, the number of parameters, but 41 came"):
        start_track(quadratic(jnp.eye(SIZE)), SIZE + 1)


def test_half_precision_is_refused_along_a_path():
    for dtype in (jnp.float16, jnp.bfloat16):
        half = {"θ": jnp.ones(4, dtype)}
        with pytest.warns(UserWarning, match="resolves only 2-3 digits"):
            problem = gflow.Problem(half, None, lambda model, _: jnp.sum(model["θ"] ** 4))
        with pytest.raises(ValueError, match=f"float32 or float64, but they are {half['θ'].dtype}"):
            start_track(problem)


def network(seed, dtype):
    """The tanh network 64-24-24-10 on 300 digits: data centred, divided by their deviation."""
    x, y = (np.asarray(a) for a in gflow.data.digits())
    x = x - x.mean(0)
    chosen = np.random.RandomState(0).permutation(len(x))[:300]
    data = jnp.asarray((x / x.std())[chosen], dtype), jax.nn.one_hot(y[chosen], 10, dtype=dtype)
    random, sizes = np.random.RandomState(seed), (64, 24, 24, 10)
    model = eqx.nn.MLP(64, 10, 24, 2, activation=jnp.tanh, key=jax.random.key(0))
    layers = []
    for layer, into, out in zip(model.layers, sizes[:-1], sizes[1:], strict=True):
        weight = random.uniform(-1, 1, (into, out)) / np.sqrt(into)
        random.uniform(size=out)
        new = jnp.asarray(weight.T, dtype), jnp.zeros(out, dtype)
        layers.append(eqx.tree_at(lambda m: (m.weight, m.bias), layer, new))
    return eqx.tree_at(lambda m: m.layers, model, tuple(layers)), data


@pytest.mark.slow
@pytest.mark.parametrize("seed, dtype", [(0, np.float32), (1, np.float64), (2, np.float32)])
def test_every_step_at_the_edge_of_stability(seed, dtype):
    model, data = network(seed, dtype)
    observe = [gflow.observe.Sharpness()]
    traj = gflow.descend(model, data, 0.4, 500, save_every=1, save_models=True, observe=observe)
    rises = np.flatnonzero(np.diff(np.asarray(traj.step_loss)) > 0) + 1
    onset = rises[traj["sharpness"][rises] > 5][0]
    hvps = traj["sharpness_hvps"]
    assert hvps.sum() == traj.stats["record_hvps"]
    assert hvps[:onset].mean() <= 2.5 and hvps[onset:].mean() <= 7
    steps = np.arange(seed, 501, 13)  # both phases of the oscillation
    exact = np.array([sharpness_by_scipy(traj, data, i) for i in steps])
    error = np.abs(traj["sharpness"][steps] / exact - 1)
    assert error[steps < onset].max() <= 1e-4
    assert error.max() <= 1e-2 and np.median(error[steps >= onset]) <= 1e-4


def sharpness_by_scipy(traj, data, i):
    """In float64, whatever the path was computed in."""
    model = jax.tree.map(lambda a: jnp.asarray(a[i], jnp.float64), eqx.filter(traj.models, eqx.is_array))
    flat, unravel = ravel_pytree(model)
    static = eqx.filter(traj.models, eqx.is_array, inverse=True)
    data = jax.tree.map(lambda a: a.astype(jnp.float64), data)
    hvp = lambda v: np.asarray(_hvp(flat, jnp.ravel(v), unravel, static, data))
    operator = arpack.LinearOperator((flat.size, flat.size), matvec=hvp, dtype=np.float64)
    return arpack.eigsh(
        operator, k=1, which="LA", v0=np.ones(flat.size), tol=1e-9, return_eigenvectors=False
    )[0]


@eqx.filter_jit
def _hvp(flat, v, unravel, static, data):
    def loss(flat):
        x, y = data
        outputs = jax.vmap(eqx.combine(unravel(flat), static))(x)
        return 0.5 * jnp.mean(jnp.sum((outputs - y) ** 2, axis=-1))

    return jax.jvp(jax.grad(loss), (flat,), (v,))[1]


def test_few_directions_are_all_looked_at():
    # diagonal, so that nothing leads from the tracked eigenvector to the one that overtakes it in one jump
    rows = np.tile([-1.0, 0.0, 1.0, 2.0, 4.0, 5.0], (20, 1))
    rows[10:, 0] = 9.0
    for k in (1, 3):
        pairs, error = along(np.stack([np.diag(row) for row in rows]), np.zeros((20, 6)), k)
        assert np.all(pairs.converged) and error.max() <= 1e-12 and np.max(pairs.hvps) <= 6
