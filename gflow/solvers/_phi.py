"""The functions phi_k of exponential integrators, of numbers and of small matrices.

`phi_0 = exp`, `phi_k(z) = (phi_{k-1}(z) - 1/(k-1)!) / z`, `phi_k(0) = 1/k!`.
"""

import functools
from math import factorial

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import _linalg as la


def phi(z, most: int):
    """`phi_0(z) ... phi_most(z)`, stacked in front, for real `z`."""
    # Series for the last one and the recursion downwards where the recursion upwards cancels.
    small = jnp.abs(z) < 1.5
    near = jnp.where(small, z, 0)
    term = jnp.full_like(z, 1 / factorial(most))
    total = term
    for j in range(1, 22):
        term = term * near / (most + j)
        total = total + term
    down = [total]
    for k in range(most - 1, -1, -1):
        down.append(near * down[-1] + 1 / factorial(k))
    down = down[::-1]
    far = jnp.where(small, 1.0, z)
    up = [jnp.exp(far)]
    for k in range(1, most + 1):
        up.append((up[-1] - 1 / factorial(k - 1)) / far)
    return jnp.stack([jnp.where(small, d, u) for d, u in zip(down, up, strict=True)])


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
@jax.default_matmul_precision("highest")
def matrix_phis(
    a: Float[Array, "m m"], factors: tuple[float, ...], size: Int[Array, ""] | None = None
) -> Float[Array, "4 f m m"]:
    """`phi_1(cA) ... phi_4(cA)` of a symmetric matrix for some factors `c`.

    With a `size`, of its leading block of that size; beyond it the matrix must be zero.

    The derivative is that of the matrix function (Daleckii and Krein), which stays finite where
    eigenvalues coincide and those of the eigenvectors do not.
    """
    values, vectors = _spectrum(a, size)
    phis = phi(jnp.outer(jnp.asarray(factors, values.dtype), values), 4)[1:]
    if size is None:
        return _turned_back(vectors, phis)
    most = a.shape[0]

    def of_block(n):
        found = _turned_back(vectors[:n, :n], phis[..., :n])
        return jnp.pad(found, [(0, 0), (0, 0), (0, most - n), (0, most - n)])

    return la.leading(of_block, most, size)


def _turned_back(vectors, phis):
    """The matrices that have these eigenvectors and eigenvalues."""
    scaled = vectors * phis[..., None, :]
    return (scaled.reshape(-1, len(vectors)) @ vectors.T).reshape(scaled.shape)


def _spectrum(a, size):
    """Eigenvalues and eigenvectors of the leading block, and zeros for what is beyond it."""
    if size is None:
        return jnp.linalg.eigh(a)
    most = a.shape[0]

    def of_block(n):
        values, vectors = jnp.linalg.eigh(a[:n, :n], symmetrize_input=False)
        return jnp.pad(values, (0, most - n)), jnp.pad(vectors, (0, most - n))

    return la.leading(of_block, most, size)


@matrix_phis.defjvp
@jax.default_matmul_precision("highest")
def _matrix_phis_jvp(factors, primals, tangents):
    (a, size), (da, _) = primals, tangents
    values, vectors = _spectrum(a, size)
    scale = jnp.asarray(factors, values.dtype)[:, None]
    z = scale * values
    phis = phi(z, 5)
    x, y = z[:, :, None], z[:, None, :]
    close = jnp.abs(x - y) < 1e-3 * (1 + jnp.abs(x) + jnp.abs(y))
    quotients = (phis[1:5, :, :, None] - phis[1:5, :, None, :]) / jnp.where(close, 1, x - y)
    middle = phi((x + y) / 2, 5)
    # phi_k' = phi_k - k phi_{k+1}
    slopes = middle[1:5] - jnp.arange(1, 5).reshape(4, 1, 1, 1) * middle[2:]
    divided = jnp.where(close, slopes, quotients)
    turned = scale[..., None] * (vectors.T @ ((da + da.T) / 2) @ vectors)
    return _turned_back(vectors, phis[1:5]), vectors @ (divided * turned) @ vectors.T


@jax.default_matmul_precision("highest")
def _doubled(a, kind):
    one = jnp.eye(a.shape[0], dtype=a.dtype)
    size = jnp.max(jnp.sum(jnp.abs(a), axis=0))
    exponent = jnp.ceil(jnp.log2(jnp.where(jnp.isfinite(size), jnp.maximum(size, 0.5), 0.5))) + 1
    small = a * 2.0**-exponent
    last = one / float(factorial(16))  # more than an int32 holds
    for j in range(15, 3, -1):  # Horner's scheme for phi_4
        last = one / float(factorial(j)) + small @ last
    phis = [last]
    for k in range(3, -1, -1):
        phis.insert(0, one / factorial(k) + small @ phis[0])

    def double(carry):
        count, phis = carry
        sums = [
            sum((phis[j] / factorial(k - j) for j in range(1, k + 1)), jnp.zeros_like(a)) for k in range(1, 5)
        ]
        later = [(phis[0] @ phis[k] + sums[k - 1]) / 2**k for k in range(1, 5)]
        return count + 1, jnp.stack([phis[0] @ phis[0], *later])

    most = jnp.finfo(a.dtype).maxexp + 1
    start = jnp.zeros((), jnp.int32), jnp.stack(phis)
    going_on = lambda carry: carry[0] < exponent.astype(int)
    _, phis = eqxi.while_loop(going_on, double, start, max_steps=most, kind=kind)
    return phis[1:]


@jax.custom_jvp
def general_phi(a):
    """`phi_1(A) ... phi_4(A)` of any square matrix, stacked in front, by scaling and doubling.

    With `2^s` so large that `A / 2^s` has a norm below 1/2, where a short series is exact to rounding, and
    then `phi_k(2A) = 2^-k [exp(A) phi_k(A) + sum_{j<=k} phi_j(A) / (k-j)!]`, `s` times.
    """
    return _doubled(a, kind="lax")  # the cheap loop ...


@general_phi.defjvp
def _general_phi_jvp(primals, tangents):
    # ... while derivatives go through a bounded one, which has both modes
    return jax.jvp(functools.partial(_doubled, kind="bounded"), primals, tangents)
