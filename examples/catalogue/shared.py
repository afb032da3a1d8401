"""Losses, observables and data that several entries of regression share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gflow


def sum_of_squares(model, data):
    """½ Σᵢ (f(xᵢ) − yᵢ)², a sum and not a mean."""
    x, y = data
    return 0.5 * jnp.sum((jax.vmap(model)(x) - y) ** 2)


def residual(model, data):
    """‖f(x) − y‖ / ‖y‖."""
    x, y = data
    return jnp.linalg.norm(jax.vmap(model)(x) - y) / jnp.linalg.norm(y)


def underdetermined(observations, unknowns):
    """Refuses data that leave the flow no choice."""
    if not 0 < observations < unknowns:
        raise ValueError(
            f"there must be fewer observations than the {unknowns} unknowns, but {observations} came; with "
            "as many the solution is unique, and nothing is left to a bias."
        )


def regression(seed, n=5, d=12):
    """Gaussian examples and targets, fewer than there are features."""
    underdetermined(n, d)
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)), random.normal(size=n)


def interpolate(models, data, *, level=1e-9, rtol=1e-13, atol=1e-18, loss=sum_of_squares, **kwargs):
    """The models where the flows of an ensemble end, each when it fits the data to the relative `level`."""
    flow = gflow.integrate(
        models,
        data,
        np.inf,
        loss=loss,
        ensemble=True,
        rtol=rtol,
        atol=atol,
        save_at=[0.0],
        max_steps=200_000,
        observe={"residual": residual},
        stop=gflow.stop.Crosses("residual", level),
        **kwargs,
    )
    return flow.model


def stack(models):
    """Members of an ensemble from a list of models of one shape."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *models)


def predictors(models):
    """The effective predictors (or matrices) of an ensemble, one a row."""
    return np.asarray(eqx.filter_vmap(lambda model: model.effective())(models))


def error(found, expected):
    """‖found − expected‖ / ‖expected‖."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)
