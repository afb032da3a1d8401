"""The top eigenpairs of the Hessian from record to record of a path, for a few HVPs each."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from gflow import _tree
from gflow._problem import Problem
from gflow.curvature._eigenpairs import default_hvps
from gflow.curvature._lanczos import Eigenpairs, lanczos, orthogonalise, warm_start
from gflow.curvature._operators import check_dtype, hessian, on_vectors

# Records that the next one is predicted from. Measured at the edge of stability: three take half the HVPs of
# one, since they span the oscillation; four with less damping a tenth less than three.
_RECORDS = 4
_DAMPING = 1e-3  # of the fit in parameter space; less amplifies the errors of the eigenvectors
# A check by Lanczos iterations from a partly random vector is due when 16 times its HVPs have been
# spent since the last one, so that checks take a seventeenth of all.
_CHECK = 16
_CHECK_RTOL = 0.03  # what a check finds is improved afterwards
_NEXT_RTOL = 3e-2  # of the next eigenvalue, where it is looked at
# The next eigenvector is looked at in every record where its eigenvalue is as near as this, relatively, and
# otherwise in every fourth.
_NEAR = 0.05
_LOOK = 4
_FADING = 0.02  # of the k-th eigenvalue: what an eigenvalue outside the space may fall by in a record
_FRESH = 1e-3  # a proposed vector that adds less than this to the space is left out
_ROUNDING = 30  # residuals below 30 eps ‖A‖ are rounding of a Hessian-vector product


class Track(eqx.Module):
    """What is remembered of a path from record to record: where it was, and the eigenvectors there.

    Made by [`gflow.curvature.start_track`][], used and renewed by [`gflow.curvature.follow`][].
    """

    points: Float[Array, "records P"]
    # The latest first; k wanted ones and the next one, each a step of power iteration better than it was
    # found.
    vectors: Float[Array, "records block P"]
    count: Int[Array, ""]
    next_value: Float[Array, ""]  # the eigenvalue after the k wanted ones, when last seen
    outside: Float[Array, ""]  # the Ritz value after the block, when last seen
    near: Bool[Array, ""]  # whether `next_value` comes near the k-th
    spent: Int[Array, ""]  # HVPs since the last check
    check_cost: Int[Array, ""]


class _Basis(NamedTuple):
    # Rows of q are orthonormal, a = A q, T = q A qᵀ; all are zero from row n on.
    q: Array
    a: Array
    T: Array
    n: Array
    used: Array  # proposed directions that were looked at
    hvps: Array
    norm: Array
    finite: Array
    # Ritz pairs of the span, largest first: values and coordinates. Of the first k + 1: residuals, the
    # worst of them as a vector, and whether all will do.
    values: Array
    ritz: Array
    residuals: Array
    direction: Array
    good: Array


def start_track(problem: Problem, k: int = 1) -> Track:
    """A [`gflow.curvature.Track`][] of the k largest eigenpairs that has seen nothing yet.

    **Raises:** `ValueError` for k outside 1..P, and for parameters not in float32 or float64.
    """
    check_dtype(problem.params)
    size, dtype = problem.size, problem.dtype
    if not 1 <= k <= size:
        raise ValueError(f"k must lie in 1..{size}, the number of parameters, but {k} came.")
    zero, none = jnp.zeros((), dtype), jnp.array(0)
    shape = (_RECORDS, min(k + 1, size), size)
    return Track(
        points=jnp.zeros((_RECORDS, size), dtype),
        vectors=_tree.noise(0, shape, dtype),  # to start from
        count=none,
        next_value=zero + jnp.inf,
        outside=zero + jnp.inf,
        near=jnp.array(True),
        spent=none,
        check_cost=none,
    )


def follow(
    problem: Problem | lx.AbstractLinearOperator,
    params: PyTree[Array],
    track: Track,
    k: int = 1,
    *,
    rtol: float | Float[Array, ""] | None = None,
    max_hvps: int | Int[Array, ""] | None = None,
) -> tuple[Eigenpairs, Track]:
    """The k largest eigenpairs of ∇²L(θ) at the next record of a path, and the track from there.

    The eigenvectors are predicted from the last four records: if θ ≈ Σ cᵢ θᵢ with Σ cᵢ = 1 fits best,
    then V ≈ Σ cᵢ Vᵢ. This holds on a smooth path, at records unevenly spaced, and on the two-cycle of
    the edge of stability alike, and takes no Hessian-vector product; nor does the step of power iteration,
    v ← ∇²L v / ‖∇²L v‖, by which each Vᵢ is better than the eigenvectors found there. A Rayleigh-Ritz step
    on the prediction follows; the (k+1)-th eigenvector and the residuals of the worst pairs join the space
    until every eigenvalue is accurate: min(r, r²/gap) <= rtol·|λ|, with the residual r = ‖∇²L v − λ v‖
    and the gap to the eigenvalues outside the space, as far as they are known.

    A small residual doesn't say that the eigenvalue is the largest. Hence the (k+1)-th eigenvector is
    looked at in every fourth record, and in each where its eigenvalue is within 5% of the k-th. At
    the first record, and whenever 16 times its cost has been spent since the last time, a search by
    Lanczos iterations from a partly random vector looks for others, as in
    [`gflow.curvature.top_eigenpairs`][]. With 2 k + 14 parameters or fewer every record looks at all
    directions, since Hessians of small models may be diagonal, where nothing leads from one to another.

    **Arguments:**

    - `problem`, `params`: the loss surface and where on it; or the operator there, such as
        [`gflow.curvature.preconditioned`][] gives it.
    - `track`: of the records before, for the same k; [`gflow.curvature.start_track`][] for the first.
    - `rtol`: the relative error of the eigenvalues, by the estimate above; by default 1e-6 in float64 and
        1e-5 in float32.
    - `max_hvps`: the most Hessian-vector products to spend; by default 1000 + 100 k.

    **Returns:** [`gflow.curvature.Eigenpairs`][], with vectors like the parameters and the HVPs of this
    record, and the track for the next record. Nothing is checked and nothing is warned of: look at
    `converged`. To be used in compiled code.

    Sources: Rayleigh-Ritz and r²/gap: Parlett, *The symmetric eigenvalue problem*, chapter 11.
    """
    theta, unravel = ravel_pytree(params)
    operator = hessian(problem, params) if isinstance(problem, Problem) else problem
    # What all products share must be computed here: XLA takes it out of loops, but not out of branches.
    matvec, _, _ = on_vectors(lx.linearise(operator))
    dtype = theta.dtype
    rtol = (1e-6 if dtype == jnp.float64 else 1e-5) if rtol is None else rtol
    max_hvps = default_hvps(k) if max_hvps is None else max_hvps

    with jax.default_matmul_precision("highest"):
        found, track = _follow(matvec, theta, track, k, jnp.asarray(rtol, dtype), max_hvps)
    return eqx.tree_at(lambda p: p.vectors, found, jax.vmap(unravel)(found.vectors)), track


def _follow(
    matvec: Callable[[Array], Array], theta: Array, track: Track, k: int, rtol: Array, max_hvps: int | Array
) -> tuple[Eigenpairs, Track]:
    predicted = _predict(track, theta)
    block, size = predicted.shape
    seed = 1 + track.count

    def search():
        start, share = warm_start(predicted[0], seed)
        # Half of the budget, for what it finds is to be improved; and nothing where there is no check,
        # since under vmap both branches run.
        half = jnp.where(due, max_hvps // 2, 0)
        pairs = lanczos(matvec, start, k, rtol=_CHECK_RTOL, max_hvps=half, random_share=share, seed=seed)
        return pairs.vectors, pairs.hvps

    if size == _length(size, block):  # so few directions that all are looked at
        due, cost, others = jnp.array(False), jnp.array(0), jnp.eye(size, dtype=theta.dtype)
        least = most = block + size
    else:
        due = (track.count == 0) | (track.spent >= _CHECK * track.check_cost)
        look = track.near | (track.count % _LOOK == 0)
        others, cost = lax.cond(due, search, lambda: (jnp.zeros((k, size), theta.dtype), jnp.array(0)))
        least = jnp.where(due, block + k, jnp.where(look, block, k))
        most = jnp.where(due, block + k, block)
    # The first prediction is noise, which no product is spent on.
    proposed = jnp.concatenate(
        [jnp.where(track.count > 0, predicted, 0), jnp.where(jnp.isfinite(others), others, 0)]
    )
    s = _rayleigh_ritz(
        matvec,
        proposed,
        least,
        most,
        track,
        k,
        rtol,
        jnp.maximum(max_hvps - cost, k),
    )
    known = s.finite & (jnp.arange(k) < s.n)
    pairs = Eigenpairs(
        values=jnp.where(known, s.values[:k], jnp.nan),
        vectors=s.ritz[:, :k].T @ s.q,
        residuals=jnp.where(known, s.residuals[:k], jnp.nan),
        hvps=s.hvps + cost,
        converged=s.good & s.finite,
    )
    return pairs, _renew(track, theta, predicted, s, pairs, due, cost)


def _length(size: int, block: int) -> int:
    """Of the basis: rows that are not in use cost time all the same."""
    return min(size, 2 * block + 8)


def _predict(track: Track, theta: Array) -> Array:
    """Σ cᵢ Vᵢ, where Σ cᵢ θᵢ with Σ cᵢ = 1 comes nearest to θ."""
    latest = track.vectors[0]
    seen = jnp.arange(1, _RECORDS) < track.count
    moves = jnp.where(seen[:, None], track.points[1:] - track.points[0], 0)
    gram = moves @ moves.T
    damping = _DAMPING * jnp.mean(jnp.diag(gram))
    regular = gram + jnp.where(damping > 0, damping, 1) * jnp.eye(_RECORDS - 1, dtype=theta.dtype)
    c = jnp.linalg.solve(regular, moves @ (theta - track.points[0]))

    def turned(vectors):
        """The same subspace in the basis nearest to that of the latest record."""
        u, _, vh = jnp.linalg.svd(latest @ vectors.T)
        return u @ vh @ vectors

    return latest + jnp.tensordot(c, jax.vmap(turned)(track.vectors[1:]) - latest, 1)


def _rayleigh_ritz(
    matvec: Callable[[Array], Array],
    proposed: Array,
    least: Array | int,
    most: Array | int,
    track: Track,
    k: int,
    rtol: Array,
    max_hvps: Array,
) -> _Basis:
    """Ritz pairs in the span of `least` to `most` of the proposed vectors and then of residuals."""
    size, dtype, block = proposed.shape[1], proposed.dtype, track.vectors.shape[1]
    m = _length(size, block)
    index, rounding = jnp.arange(m), _ROUNDING * jnp.finfo(dtype).eps

    def step(s: _Basis) -> _Basis:
        s = lax.cond((s.n == m) & (m < size), compress, lambda s: s, s)
        offered = s.used < most
        w = jnp.where(offered, proposed[jnp.minimum(s.used, len(proposed) - 1)], s.direction)
        length = _tree.norm(w)
        w = w / jnp.where(length > 0, length, 1)
        w = w - (s.q @ w) @ s.q  # once will do to see how much is new
        length = _tree.norm(w)
        fresh = length > jnp.where(offered, _FRESH, rounding)
        w, _ = orthogonalise(w / jnp.where(fresh, length, 1), s.q)
        w = jnp.where(fresh, w, 0)
        aw = lax.cond(fresh, matvec, jnp.zeros_like, w)
        norm = _tree.norm(aw)
        finite = jnp.isfinite(norm)
        aw = jnp.where(finite, aw, 0)
        at = jnp.where(fresh, s.n, m)  # row m doesn't exist: nothing is written
        q, a = s.q.at[at].set(w, mode="drop"), s.a.at[at].set(aw, mode="drop")
        h = q @ aw
        return look(
            s._replace(
                q=q,
                a=a,
                T=s.T.at[at].set(h, mode="drop").at[:, at].set(h, mode="drop"),
                n=s.n + fresh,
                used=s.used + 1,
                hvps=s.hvps + fresh,
                norm=jnp.maximum(s.norm, jnp.where(finite, norm, 0)),
                finite=finite,
            )
        )

    def look(s: _Basis) -> _Basis:
        live = index < s.n
        bound = jnp.max(jnp.sum(jnp.abs(s.T), 1))
        pad = jnp.where(live, 0, -2 * jnp.where(bound > 0, bound, 1))  # unused columns come last
        values, ritz = jnp.linalg.eigh(s.T + jnp.diag(pad.astype(dtype)), symmetrize_input=False)
        values, ritz = values[::-1], ritz[:, ::-1]
        y = ritz[:, :block].T
        rest = y @ s.a - values[:block, None] * (y @ s.q)
        r = jax.vmap(_tree.norm)(rest)
        outside = jnp.where(s.n >= block, track.outside, track.next_value)
        if block < m:
            # Ritz values of few vectors may be far too low, which would feign a gap
            remembered = jnp.where(jnp.isfinite(track.outside), track.outside, -jnp.inf)
            outside = jnp.where(s.n > block, jnp.maximum(values[block], remembered), outside)
        gap = values[:block] - outside
        error = jnp.where(gap > r, r**2 / jnp.where(gap > r, gap, 1), r)
        tol = jnp.where(index[:block] < k, rtol, _NEXT_RTOL) * jnp.abs(values[:block])
        good = (error <= tol) | (r <= rounding * s.norm) | (s.n == size)
        worst = jnp.argmax(jnp.where(good, -1, error))
        return s._replace(
            values=values, ritz=ritz, residuals=r, direction=rest[worst], good=jnp.all(good) & (s.n >= k)
        )

    def compress(s: _Basis) -> _Basis:
        kept = index < m // 2
        rows = jnp.where(kept[:, None], s.ritz.T, 0)
        T = jnp.diag(jnp.where(kept, s.values, 0))
        return s._replace(q=rows @ s.q, a=rows @ s.a, T=T, n=jnp.asarray(m // 2, s.n.dtype))

    def going_on(s: _Basis):
        complete = (s.n == size) | (s.good & (s.used >= least))
        # no more looks than this: proposed vectors may take none of the budget
        return ~complete & s.finite & (s.hvps < max_hvps) & (s.used < max_hvps + len(proposed))

    none, zeros = jnp.array(0), jnp.zeros((m, size), dtype)
    return lax.while_loop(
        going_on,
        step,
        _Basis(
            q=zeros,
            a=zeros,
            T=jnp.zeros((m, m), dtype),
            n=none,
            used=none,
            hvps=none,
            norm=jnp.zeros((), dtype),
            finite=jnp.array(True),
            values=jnp.zeros(m, dtype),
            ritz=jnp.eye(m, dtype=dtype),
            residuals=jnp.zeros(block, dtype),
            direction=jnp.zeros(size, dtype),
            good=jnp.array(False),
        ),
    )


def _renew(
    track: Track, theta: Array, predicted: Array, s: _Basis, pairs: Eigenpairs, due: Array, cost: Array
) -> Track:
    """The track with this record in it; unchanged if something was not finite."""
    k, block = len(pairs.values), len(predicted)
    last = s.values[k - 1]
    vectors, next_value, outside = pairs.vectors, track.next_value, track.outside
    if k < block:  # the next vector was looked at, or is carried on as predicted
        looked = s.n >= block
        carried, _ = orthogonalise(predicted[k], vectors)
        vectors = jnp.concatenate([vectors, jnp.where(looked, s.ritz[:, k] @ s.q, carried)[None]])
        next_value = jnp.where(looked, s.values[k], next_value)
    # A step of power iteration, which costs nothing here, makes them better for the next record.
    powers = s.ritz[:, :block].T @ s.a
    vectors = jnp.where(s.values[:block, None] > 0, powers, vectors)
    lengths = jax.vmap(_tree.norm)(vectors)[:, None]
    vectors = vectors / jnp.where(lengths > 0, lengths, 1)
    if block < len(s.values):
        faded = jnp.where(jnp.isfinite(outside), outside, -jnp.inf) - _FADING * jnp.abs(last)
        outside = jnp.where(s.n > block, jnp.maximum(s.values[block], faded), outside)
    new = Track(
        points=jnp.concatenate([theta[None], track.points[:-1]]),
        vectors=jnp.concatenate([vectors[None], track.vectors[:-1]]),
        count=track.count + 1,
        next_value=next_value,
        outside=outside,
        near=last - next_value <= _NEAR * jnp.abs(last),
        spent=jnp.where(due, 0, track.spent + s.hvps),
        check_cost=jnp.where(due, cost, track.check_cost),
    )
    return _tree.where(s.finite, new, track)
