"""B38: the ℓ₂ norm of the parameters is another norm of the function."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, below
from references import bridge_minimum, shrunk
from shared import error, sum_of_squares

import gflow

DECAY = 0.5


def run(quick: bool) -> Entry:
    """Weight decay on a product of two matrices and on diagonal networks of depth 3, on three seeds."""
    matrix, nuclear, bridge, penalty = 0.0, 0.0, 0.0, 0.0
    how = dict(loss=sum_of_squares, flow=gflow.flows.WeightDecay(DECAY), rtol=1e-10, atol=1e-13, save_at=2)
    for seed in range(3):
        random = np.random.default_rng(seed)
        # singular values away from λ, where the decay to 0 would take forever
        left, right = np.linalg.qr(random.normal(size=(4, 3)))[0], np.linalg.qr(random.normal(size=(3, 3)))[0]
        target = (left * [3.0, 2.0, 0.2]) @ right.T
        model = gflow.models.DeepLinear([jnp.asarray(random.normal(size=s)) for s in ((4, 3), (4, 4))])
        b, a = map(np.asarray, gflow.integrate(model, (np.eye(3), target.T), 400.0, **how).model.matrices)
        thresholded = shrunk(target, DECAY)
        matrix = max(matrix, error(a @ b, thresholded))
        norm = np.linalg.svd(thresholded, compute_uv=False).sum()
        nuclear = max(nuclear, abs((np.sum(a**2) + np.sum(b**2)) / 2 / norm - 1))
        values = random.uniform(2, 4, size=4)
        diagonal = gflow.models.UnsharedDiagonal(jnp.asarray(random.uniform(0.8, 1.2, size=(3, 4))))
        end = gflow.integrate(diagonal, (np.eye(4), values), 400.0, **how).model
        beta = np.asarray(end.effective())
        exact = np.array([bridge_minimum(value, DECAY, 3) for value in values])
        bridge = max(bridge, error(beta, exact))
        penalty = max(penalty, abs(float(jnp.sum(end.u**2)) / 2 / np.sum(1.5 * beta ** (2 / 3)) - 1))
    checks = [
        below("AB: relative error to the singular values less λ, worst of 3 seeds", matrix, 1e-7),
        below("½(‖A‖² + ‖B‖²) / nuclear norm − 1", nuclear, 1e-7),
        below("diagonal, depth 3: error to the minimum of ½(β−y)² + λ(3/2)|β|^{2/3}", bridge, 1e-7),
        below("diagonal, depth 3: ½ Σ‖uⱼ‖² / (3/2) Σ|β|^{2/3} − 1", penalty, 1e-7),
    ]

    def draw(figure):
        axes = figure.subplots()
        t = np.linspace(0, 4, 200)
        axes.plot(t, np.maximum(t - DECAY, 0), "k-", lw=1, label="singular values: soft threshold")
        axes.plot(
            np.linalg.svd(target, compute_uv=False),
            np.linalg.svd(a @ b, compute_uv=False)[:3],
            "o",
            label="AB",
        )
        axes.plot(values, beta, "s", label="diagonal, depth 3")
        axes.set(xlabel="target", ylabel="limit with weight decay")
        axes.legend()

    return Entry(
        "Weight decay on the factors of a product is a penalty of the product: its nuclear norm for"
        " two matrices, the power 2/k of its entries for diagonal networks of depth k.",
        "Srebro, Rennie and Jaakkola, NeurIPS 2004; Gunasekar et al., NeurIPS 2018, arXiv:1806.00468",
        checks,
        draw,
    )
