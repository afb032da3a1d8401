"""References of the race of solvers: θ(T) to many digits, the sharpness on the way, and a second opinion."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from _report import circumstances
from _stiff import Stiff
from jax.flatten_util import ravel_pytree

import gflow


class Reference(NamedTuple):
    """θ(T), the sharpness λ along the way, and how they were obtained."""

    params: np.ndarray
    times: np.ndarray
    sharpness: np.ndarray
    how: dict[str, Any]

    @property
    def stiffness(self) -> float:
        """∫λ dt up to the horizon."""
        return self.stiffness_until(self.times[-1])

    def stiffness_until(self, time: float) -> float:
        """∫λ dt up to a time."""
        return float(np.interp(time, self.times, self._stiffness()))

    def time_at(self, stiffness: float) -> float:
        """The time up to which ∫λ dt is so large, the horizon if it never is."""
        return float(np.interp(stiffness, self._stiffness(), self.times))

    def _stiffness(self) -> np.ndarray:
        rates = np.maximum(self.sharpness, 0)
        pieces = np.diff(self.times) * (rates[1:] + rates[:-1]) / 2
        return np.concatenate([[0.0], np.cumsum(pieces)])


def flow(case: Stiff, **options: Any) -> gflow.Trajectory:
    """`gflow.integrate` to the horizon of the problem, recorded at both ends only."""
    problem = case.problem
    defaults = {"t_max": case.horizon, "save_at": 2, "max_steps": 1_000_000, "throw": False}
    return gflow.integrate(
        problem.model(problem.params), problem.data, loss=problem.loss, **(defaults | options)
    )


def vector(model: Any) -> np.ndarray:
    """All parameters of a model as one vector."""
    return np.asarray(ravel_pytree(eqx.filter(model, eqx.is_inexact_array))[0])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖ / ‖b‖"""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def reference(case: Stiff, cache: Path) -> Reference:
    """From the cache, if the losses at both ends there are those of the problem; else computed and kept."""
    path = cache / f"{case.name.replace(', ', '_').replace(' ', '_')}.npz"
    if path.exists():
        with np.load(path) as file:
            found = Reference(file["params"], file["times"], file["sharpness"], json.loads(str(file["how"])))
        if found.times[-1] == case.horizon and np.allclose(found.how["losses"], _losses(case, found.params)):
            return found
    found = _computed(case)
    cache.mkdir(parents=True, exist_ok=True)
    how = json.dumps(found.how)
    np.savez(path, params=found.params, times=found.times, sharpness=found.sharpness, how=how)
    return found


def _computed(case: Stiff) -> Reference:
    """By Dopri8, checked by Tsit5; where gradients are dear by Tsit5, checked by RKC3."""
    solver, other, tolerances = diffrax.Dopri8(), diffrax.Tsit5(), (1e-10, 1e-8)
    if case.problem.size > 1e5:
        tolerances = (1e-9, 1e-7)
    if case.costly:
        solver, other, tolerances = diffrax.Tsit5(), gflow.solvers.RKC3(), (1e-6, 1e-5)
    rtol, looser = tolerances
    times = case.horizon * np.linspace(0, 1, 41 if case.problem.size > 1e5 else 101) ** 2
    watch = gflow.observe.Sharpness(rtol=1e-2)
    exact = flow(case, solver=solver, rtol=rtol, atol=1e-3 * rtol, save_at=times, observe=[watch])
    check = flow(case, solver=other, rtol=looser, atol=1e-3 * looser)
    if not (exact.ok and check.ok):
        raise RuntimeError(f"no reference for {case.name}: {exact.reason}; {check.reason}")
    params = vector(exact.model)
    how = {
        "method": f"{type(solver).__name__}, rtol {rtol:g}",
        "gradients": exact.stats["gradients"],
        "checked_by": f"{type(other).__name__}, rtol {looser:g}",
        "difference": distance(vector(check.model), params),
        "losses": _losses(case, params),
        "seconds": exact.stats["seconds"] + check.stats["seconds"],
        **circumstances(),
    }
    return Reference(params, exact.t, exact["sharpness"], how)


def _losses(case: Stiff, params: np.ndarray) -> list[float]:
    """At the start and at `params`."""
    start, unravel = ravel_pytree(case.problem.params)
    return [float(case.problem.value(unravel(jnp.asarray(p)))) for p in (start, params)]
