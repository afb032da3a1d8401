"""B38: weight decay on the parameters is a penalty on the function, which the architecture chooses."""

import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, below
from references import penalised_power, penalised_relu, soft_thresholded
from shared import sum_of_squares

import gflow

DECAYS = (0.1, 0.5, 2.0)


def matrix_loss(model, target):
    """½ ‖W − M‖²."""
    return jnp.sum((model.effective() - target) ** 2) / 2


def settle(model, data, decay, loss, t_max=1000.0, rtol=1e-12, atol=1e-16):
    """The model where the flow with weight decay has come to rest."""
    flow = gflow.flows.WeightDecay(decay)
    return gflow.integrate(model, data, t_max, loss=loss, flow=flow, rtol=rtol, atol=atol, save_at=2).model


def half_square(model):
    """½ ‖θ‖²."""
    return sum(np.sum(np.asarray(leaf) ** 2) for leaf in jax.tree.leaves(model)) / 2


def factorised(seed, decay):
    """Errors of AB and of ½(‖A‖² + ‖B‖²), and singular values before and after."""
    target = np.random.default_rng(seed).normal(size=(4, 4))
    start = gflow.models.Factorisation.normal(4, 2, 0.5, key=jax.random.key(seed))
    model = settle(start, target, decay, matrix_loss)
    found, exact = np.asarray(model.effective()), soft_thresholded(target, decay)
    size = abs(half_square(model) - np.linalg.norm(exact, "nuc"))
    values = [np.linalg.svd(matrix, compute_uv=False) for matrix in (target, found)]
    return np.abs(found - exact).max(), size, values


def diagonal(seed, depth, decay=0.3):
    """Errors of β and of ½‖θ‖² = (D/2) Σ β^{2/D}, and the entries before and after."""
    target = np.random.default_rng(seed).uniform(0.2, 3, 6)
    start = gflow.models.UnsharedDiagonal(jnp.full((depth, 6), 1.5))
    model = settle(start, target, decay, matrix_loss)
    found, exact = np.asarray(model.effective()), penalised_power(target, decay, depth)
    size = abs(half_square(model) - depth / 2 * np.sum(exact ** (2 / depth)))
    return np.abs(found - exact).max(), size, (target, found)


def relu(seed, decay=0.3):
    """Relative excess of the objective over the convex optimum, and of ½‖θ‖² over the variation norm."""
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(6, 2)), random.normal(size=6)
    start = gflow.models.TwoLayer.balanced(2, 50, 0.02, key=jax.random.key(seed))
    # a path along kinks, of which only the end is asked for
    model = settle(start, (x, y), decay, sum_of_squares, 100.0, rtol=1e-4, atol=1e-6)
    reached = sum_of_squares(model, (x, y)) + decay * half_square(model)
    size = half_square(model) / gflow.bias.variation_norm(model.w, model.v) - 1
    return abs(reached / penalised_relu(x, y, decay) - 1), abs(size)


def run(quick: bool) -> Entry:
    """Limits of the flow beside minimisers of the penalised problems, on three seeds."""
    matrices = {decay: [factorised(seed, decay) for seed in range(3)] for decay in DECAYS}
    depths = (3,) if quick else (2, 3, 4)
    diagonals = {depth: [diagonal(seed, depth) for seed in range(3)] for depth in depths}
    networks = [relu(seed) for seed in range(3)]
    every = [result for results in matrices.values() for result in results]
    checks = [
        below(
            "AB: error to M with singular values soft-thresholded at λ, worst of λ from 0.1 to 2 and 3 seeds",
            max(e for e, _, _ in every),
            1e-9,
        ),
        below("½(‖A‖² + ‖B‖²) less the nuclear norm, worst", max(s for _, s, _ in every), 1e-9),
    ]
    for depth, results in diagonals.items():
        checks += [
            below(
                f"diagonal, D = {depth}: error to the minimum with penalty (D/2) Σ|β|^{{2/D}}, worst",
                max(e for e, _, _ in results),
                1e-9,
            ),
            below(
                f"diagonal, D = {depth}: ½‖θ‖² less (D/2) Σ|β|^{{2/D}}, worst",
                max(s for _, s, _ in results),
                1e-9,
            ),
        ]
    checks += [
        below(
            "ReLU, 50 neurons: relative excess over the convex optimum of any width, worst",
            max(e for e, _ in networks),
            1e-3,
        ),
        below("ReLU: ½‖θ‖² over the variation norm, less 1, worst", max(s for _, s in networks), 1e-6),
    ]

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for decay, marker in zip(DECAYS, "os^", strict=True):
            before, after = zip(*(values for _, _, values in matrices[decay]), strict=True)
            (points,) = left.plot(
                np.ravel(before), np.ravel(after), marker, ms=4, label=rf"$\lambda={decay:g}$"
            )
            line = np.linspace(0, 3.5, 200)
            left.plot(line, np.maximum(line - decay, 0), color=points.get_color(), lw=0.8)
        left.set(xlabel="singular values of $M$", ylabel="singular values of $AB$")
        left.legend()
        for depth, results in diagonals.items():
            before, after = zip(*(values for _, _, values in results), strict=True)
            (points,) = right.plot(np.ravel(before), np.ravel(after), "o", ms=4, label=f"D = {depth}")
            line = np.linspace(0.01, 3, 600)
            right.plot(line, penalised_power(line, 0.3, depth), color=points.get_color(), lw=0.8)
        right.set(xlabel="$m$", ylabel=r"$\beta$ of a diagonal network")
        right.legend()

    return Entry(
        "Weight decay acts on the function as a penalty that the architecture chooses: the nuclear norm of a "
        "factorised matrix, (D/2) Σ|βᵢ|^{2/D} of a diagonal network of depth D, the variation norm of ReLU "
        "networks.",
        "Vardi, Communications of the ACM 2023, arXiv:2208.12591",
        checks,
        draw,
    )
