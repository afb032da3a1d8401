"""B38: weight decay on the parameters is a penalty on the function, which the architecture chooses."""

import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, below
from references import (
    penalised_power,
    penalised_relu,
    soft_thresholded,
)
from shared import error, stack, sum_of_squares

import gflow

DECAYS = (0.1, 0.5, 2.0)


def matrix_loss(model, target):
    """½ ‖W − M‖²."""
    return jnp.sum((model.effective() - target) ** 2) / 2


def settle(model, data, decay, loss, t_max, **kwargs):
    """The model where the flow with weight decay has come to rest."""
    flow = gflow.flows.WeightDecay(decay)
    how = dict(rtol=1e-10, atol=1e-16, save_at=2) | kwargs
    return gflow.integrate(model, data, t_max, loss=loss, flow=flow, **how).model


def half_square(tree):
    """½ ‖θ‖²."""
    return float(sum(np.sum(np.asarray(leaf) ** 2) for leaf in jax.tree.leaves(tree)) / 2)


def run(quick: bool) -> Entry:
    matrices = {}
    random = np.random.default_rng(0)
    for seed in range(3):
        random = np.random.default_rng(seed)
        target = random.normal(size=(4, 4))
        for decay in DECAYS:
            model = gflow.models.Factorisation.normal(4, 2, 0.5, key=jax.random.key(seed))
            model = settle(model, target, decay, matrix_loss, 400.0)
            print(seed, decay, np.abs(model.effective() - soft_thresholded(target, decay)).max(), half_square(model) - np.linalg.norm(soft_thresholded(target, decay), 'nuc'), np.linalg.svd(target)[1])
    for depth in (2, 3, 4):
        m = np.random.default_rng(depth).uniform(0.2, 3, 6)
        start = gflow.models.UnsharedDiagonal(jnp.full((depth, 6), 1.5))
        model = settle(start, m, 0.3, matrix_loss, 400.0)
        ref = penalised_power(m, 0.3, depth)
        beta = np.asarray(model.effective())
        print(depth, beta, ref, np.abs(beta-ref).max(), half_square(model) - depth/2*np.sum(np.abs(beta)**(2/depth)))
    import time
    for seed in range(3):
        random = np.random.default_rng(seed)
        x, y = random.normal(size=(6, 2)), random.normal(size=6)
        t0=time.time()
        ref = penalised_relu(x, y, 0.3)
        t1=time.time()
        for width in (50, 200):
          for scale in (1.0, 0.1):
            t2=time.time()
            net = gflow.models.TwoLayer.balanced(2, width, scale/width**.5, key=jax.random.key(seed))
            net = settle(net, (x, y), 0.3, sum_of_squares, 200.0, rtol=1e-6, atol=1e-9, throw=False)
            obj = float(sum_of_squares(net, (x, y))) + 0.3*half_square(net)
            print(seed, width, scale, obj, ref, obj/ref-1, half_square(net)-float(gflow.bias.variation_norm(net.w,net.v)), t1-t0, time.time()-t2)
