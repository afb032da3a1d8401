"""Thick-restarted Lanczos: the largest eigenpairs of a symmetric operator, inside jit."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from gflow import _tree

# A residual says that SOME eigenvalue was found. That none above it was missed can only be said of
# a start with a random part: a missed eigenvector has the component c = share·g/√P in it, g a random
# number of mean square 1. After n steps the residual of the whole Krylov space is known:
# ‖χ(A) start‖ = Π β, where χ, the characteristic polynomial of T, has the Ritz values as roots. Hence
# |χ(λ)| |c| <= Π β for every eigenvalue λ, and once |χ(level)| share·LUCK/√P > Π β, an eigenvalue above
# `level` was missed only if |g| < LUCK: a probability below 0.82·LUCK if the entries of the random part are
# normal, and if they are uniform, whatever the eigenvector (no section of a cube is larger than √2: Ball,
# 1986). `level` is MARGIN·‖A‖ above the k-th value. For a random start and k = 1 it asks for a step or two
# more in float32, for nothing in float64.
MARGIN = 0.005
LUCK = 0.005
# Noise in a warm start. Measured: without the test above, float32 at rtol 1e-4 took an old vector that had
# been overtaken by 1% for the top one in 133 and 56 of 300 draws (two spectra, noise 0.3), with it in 0 and
# 1 at LUCK = 0.02. Hessians of tanh networks 2-20 steps of descent later, with the test at LUCK = 0.005:
# noise 0.01 / 0.1 / 0.3 / 1 costs 22 / 20 / 19 / 20 HVPs in float32 and float64; a cold start 20 and 24. Who
# has to rule out larger eigenvalues can't save much by knowing a vector.
NOISE = 0.3
_ROUNDING = 30  # residuals below 30 eps ‖A‖ are rounding of a Hessian-vector product
_LONGEST = 6  # steps between two looks at the Ritz values, at most


class Eigenpairs(eqx.Module):
    """Eigenpairs of a symmetric operator A, largest eigenvalue first.

    **Attributes:**

    - `values`: θ, shape `(k,)`, descending.
    - `vectors`: unit eigenvectors v: rows of a `(k, P)` array, or a PyTree with a leading axis `k`.
    - `residuals`: ‖A v − θ v‖, shape `(k,)`, up to rounding (about 20 eps ‖A‖). Some eigenvalue of A lies
        within it of θ.
    - `hvps`: how often A was applied.
    - `converged`: True if all residuals met the tolerance and the search for missed eigenvalues is
        complete. If False, values and residuals are what was reached, or NaN if A gave NaN.
    """

    values: Float[Array, "k"]
    vectors: PyTree[Float[Array, "k ..."]]
    residuals: Float[Array, "k"]
    hvps: Int[Array, ""]
    converged: Bool[Array, ""]


class _State(NamedTuple):
    # Rows of `basis` are orthonormal, zero beyond row n. The first `locked` are Ritz vectors of
    # earlier blocks; the others are the current block, A basis[:n] = T basis[:n] + beta e_n basis[n].
    basis: Array
    T: Array
    n: Array
    locked: Array
    locked_residuals: Array
    beta: Array
    log_betas: Array  # log Π β, less the factors of χ(level) lost in restarts
    share: Array
    norm: Array  # largest ‖A q‖ seen, a lower estimate of ‖A‖
    hvps: Array
    blocks: Array
    broken: Array
    finite: Array
    # Outcome of the last look: columns of `ritz` are the Ritz vectors in coordinates of the basis.
    ritz: Array
    values: Array
    residuals: Array
    top: Array
    level: Array
    small: Array
    done: Array
    lock: Array
    columns: Array
    keep: Array
    gap: Array
    deficit: Array


def warm_start(vector: Float[Array, "P"], seed: int | Array) -> tuple[Float[Array, "P"], Float[Array, ""]]:
    """A start for [`lanczos`][] near `vector`, an eigenvector of a nearby operator, and its share.

    Returns `start = v/‖v‖ + 0.3 z`, z a random unit vector, and the random share of it, to be
    given to `lanczos` as `random_share`. Noise and share make sure that an eigenvector which has
    overtaken `vector` is found. A zero or non-finite vector gives a random start.
    """
    noise = _tree.noise(seed, vector.shape, vector.dtype)
    noise = noise / _tree.norm(noise)
    length = _tree.norm(vector)
    usable = jnp.isfinite(length) & (length > 0)
    unit = jnp.where(usable, vector / jnp.where(usable, length, 1), 0)
    share = jnp.where(usable, NOISE / math.hypot(1, NOISE), 1).astype(vector.dtype)
    return unit + NOISE * noise, share


def lanczos(
    matvec: Callable[[Float[Array, "P"]], Float[Array, "P"]],
    start: Float[Array, "P"],
    k: int = 1,
    *,
    rtol: float | Float[Array, ""],
    max_hvps: int | Int[Array, ""],
    basis: int | None = None,
    random_share: float | Float[Array, ""] = 0.0,
    seed: int | Array = 0,
) -> Eigenpairs:
    """The k largest (algebraic) eigenpairs of the symmetric operator `matvec`, by their residuals.

    Stops when every ‖A v − θ v‖ <= rtol·|θ| + 30 eps·‖A‖ and no larger eigenvalue is likely to have
    been missed: one more than 0.5% of ‖A‖ above the k-th value is overlooked with a probability below
    0.4%. A single Krylov sequence sees one vector of each eigenspace, so for k > 1 (and for a start that
    isn't random) a second sequence from a random vector, orthogonal to the pairs found, looks for
    others. This makes repeated eigenvalues right, as scipy's `eigsh` doesn't promise, and costs
    about a tenth of the HVPs.

    **Arguments:**

    - `start`: first vector, not zero.
    - `basis`: how many vectors are kept, memory O(basis·P); by default `min(P, 36 + 2 k)`.
    - `random_share`: norm of the random part of `start` over the norm of `start`: 1 for a
        Gaussian `start`, what [`warm_start`][] returns for its start, 0 if nothing is known.
    - `seed`: for the random vectors of later sequences.

    Works under jit and vmap. **Raises** `ValueError` for k outside 1..P or a basis too small.

    Sources: Wu and Simon, *Thick-restart Lanczos method for large symmetric eigenvalue problems*,
    SIAM J. Matrix Anal. Appl. 22 (2000); Parlett, *The symmetric eigenvalue problem*, chapters 11
    and 13; random starts: Kuczyński and Woźniakowski, SIAM J. Matrix Anal. Appl. 13 (1992).
    """
    size, dtype = start.size, start.dtype
    m = min(size, 36 + 2 * k) if basis is None else min(size, basis)
    if not 1 <= k <= size:
        raise ValueError(f"k must lie in 1..{size}, the size of the operator, but {k} came.")
    if m < min(size, 2 * k + 2):
        raise ValueError(f"basis must be at least 2 k + 2 = {2 * k + 2}, but {basis} came; leave it out.")
    rtol, tiny = jnp.asarray(rtol, dtype), jnp.finfo(dtype).tiny
    rounding = _ROUNDING * jnp.finfo(dtype).eps
    index = jnp.arange(m)
    seed = jnp.asarray(seed).astype(jnp.uint32) + jnp.uint32(1)  # because `warm_start` has taken the first

    def step(s: _State) -> _State:
        w = matvec(s.basis[s.n])
        norm = _tree.norm(w)
        finite = jnp.isfinite(norm)
        w, h = orthogonalise(jnp.where(finite, w, 0), s.basis)
        norm = jnp.maximum(s.norm, jnp.where(finite, norm, 0))
        beta = _tree.norm(w)
        broken = beta <= rounding * norm
        positive = jnp.where(broken, 1, beta)
        return s._replace(
            basis=s.basis.at[s.n + 1].set(jnp.where(broken, 0, w / positive)),
            # The coefficients fill T, the arrowhead after a restart included.
            T=s.T.at[s.n].set(h[:m]).at[:, s.n].set(h[:m]),
            n=s.n + 1,
            beta=beta,
            log_betas=s.log_betas + jnp.where(broken, -jnp.inf, jnp.log(positive)),
            norm=norm,
            hvps=s.hvps + 1,
            broken=broken,
            finite=finite,
        )

    def look(s: _State) -> _State:
        """Ritz values of the block beside the locked ones, and what follows from them."""
        block = (index >= s.locked) & (index < s.n)
        bound = jnp.max(jnp.sum(jnp.abs(s.T), 1))
        # Large diagonal entries keep locked columns first, in order, and unused ones last.
        far = 2 * jnp.where(bound > 0, bound, 1)
        pad = jnp.where(block, 0, jnp.where(index < s.locked, far * (2 - index / m), -far))
        theta, ritz = jnp.linalg.eigh(
            jnp.where(block[:, None] & block, s.T, jnp.diag(pad.astype(dtype))), symmetrize_input=False
        )
        theta, ritz = theta[::-1], ritz[:, ::-1]
        is_locked = index < s.locked
        values = jnp.where(is_locked, jnp.diag(s.T), jnp.where(block, theta, -jnp.inf))
        leak = jnp.linalg.norm(jnp.where(is_locked[:, None] & ~is_locked, s.T @ ritz, 0), axis=0)
        residuals = jnp.where(is_locked, s.locked_residuals, jnp.hypot(s.beta * ritz[s.n - 1], leak))
        tol = rtol * jnp.abs(values) + rounding * s.norm
        good = (residuals <= tol) & (index < s.n)
        top = jnp.argsort(-values)[:k]
        small = jnp.all(good[top]) & s.finite

        level = values[top[-1]] + MARGIN * s.norm + tiny
        below = jnp.all(jnp.where(block, theta, -jnp.inf) < level)
        log_chi = jnp.sum(jnp.log(jnp.where(block, jnp.maximum(level - theta, tiny), 1)))
        missing = 0.5 * math.log(size) - jnp.log(s.share * LUCK) - (log_chi - s.log_betas)
        # With no random part, or with Ritz values above the level, this block can't tell.
        telling = below & (s.share > 0)
        complete = s.n >= size
        done = complete | (small & telling & (missing <= 0)) | ~s.finite
        # Locked vectors that aren't eigenvectors may keep a new pair from converging.
        loose = jnp.any(is_locked & ~good)
        stuck = loose & jnp.any(leak[top] > tol[top])
        lock = ~done & (s.broken | stuck | (small & ~telling))
        # The first lock for k > 1 keeps other Ritz vectors too: they speed up the second sequence.
        wide = (s.blocks == 0) & ~s.broken & (k > 1)
        at_most = jnp.where(wide, jnp.minimum(s.n, max(k, m // 2)), jnp.minimum(jnp.sum(good), k))

        # Next look when half of what is missing (in logarithms) should be gained at the last rate.
        excess = jnp.log(jnp.maximum(residuals[top], tiny)) - jnp.log(jnp.maximum(tol[top], tiny))
        deficit = jnp.clip(jnp.maximum(jnp.max(excess), jnp.where(telling, missing, 0)), 0, 99)
        gap = 0.5 * deficit * s.gap / jnp.maximum(s.deficit - deficit, 1e-3)
        return s._replace(
            ritz=ritz,
            values=values,
            residuals=residuals,
            top=top,
            level=level,
            small=small,
            done=done,
            lock=lock,
            columns=jnp.where(lock, jnp.lexsort((-values, ~good)), index),
            keep=jnp.where(lock, at_most, s.locked + (m - s.locked) // 2),
            gap=jnp.where(lock, 2, jnp.clip(gap, 1, _LONGEST).astype(s.gap.dtype)),
            deficit=jnp.where(lock, 99, deficit).astype(dtype),
        )

    def restart(s: _State) -> _State:
        """Shrink the basis to the best Ritz vectors; after them the residual, or a random vector."""
        ritz = s.ritz[:, s.columns]
        kept = index < s.keep
        rows = jnp.where(kept[:, None], ritz.T @ s.basis[:m], 0)
        fresh = _tree.noise(seed + s.blocks.astype(jnp.uint32), (size,), dtype)
        fresh, _ = orthogonalise(fresh / _tree.norm(fresh), rows)
        fresh = jnp.where(s.lock, fresh / _tree.norm(fresh), s.basis[s.n])
        lost = jnp.where(kept | (index >= s.n), 1, jnp.maximum(s.level - s.values, tiny))
        return s._replace(
            basis=jnp.concatenate([rows, jnp.zeros((1, size), dtype)]).at[s.keep].set(fresh),
            T=jnp.where(kept[:, None] & kept, ritz.T @ s.T @ ritz, 0),
            n=s.keep,
            locked=jnp.where(s.lock, s.keep, s.locked),
            locked_residuals=jnp.where(s.lock, s.residuals[s.columns], s.locked_residuals),
            log_betas=jnp.where(s.lock, 0, s.log_betas - jnp.sum(jnp.log(lost))),
            share=jnp.where(s.lock, 1, s.share),
            blocks=s.blocks + s.lock,
            broken=jnp.zeros_like(s.broken),
        )

    def advance(s: _State) -> _State:
        s = lax.cond(s.lock | (s.n == m), restart, lambda s: s, s)
        end = jnp.minimum(jnp.minimum(s.n + s.gap, m), s.n + max_hvps - s.hvps)
        return look(lax.while_loop(lambda s: (s.n < end) & ~s.broken & s.finite, step, s))

    no, yes = jnp.array(False), jnp.array(True)
    zero, zeros, square = (jnp.zeros(shape, dtype) for shape in ((), m, (m, m)))
    count = jnp.zeros((), index.dtype)
    state = _State(
        basis=jnp.zeros((m + 1, size), dtype).at[0].set(start / _tree.norm(start)),
        T=square,
        n=count,
        locked=count,
        locked_residuals=zeros,
        beta=zero,
        log_betas=zero,
        share=jnp.asarray(random_share, dtype),
        norm=zero,
        hvps=count,
        blocks=count,
        broken=no,
        finite=yes,
        ritz=square,
        values=zeros,
        residuals=zeros,
        top=index[:k],
        level=zero,
        small=no,
        done=no,
        lock=no,
        columns=index,
        keep=count,
        gap=count + k + 1,
        deficit=zero + 99,
    )
    with jax.default_matmul_precision("highest"):  # TF32 would spoil the orthogonality
        s = lax.while_loop(lambda s: ~s.done & (s.hvps < max_hvps), advance, state)
        vectors = s.ritz[:, s.top].T @ s.basis[:m]
    known = s.finite & (s.top < s.n)
    return Eigenpairs(
        values=jnp.where(known, s.values[s.top], jnp.nan),
        vectors=vectors,
        residuals=jnp.where(known, s.residuals[s.top], jnp.nan),
        hvps=s.hvps,
        converged=s.small & s.done,
    )


def orthogonalise(w: Array, basis: Array) -> tuple[Array, Array]:
    """`w` less its components along the rows, and these. Twice: once loses orthogonality."""
    h = basis @ w
    w = w - h @ basis
    again = basis @ w
    return w - again @ basis, h + again
