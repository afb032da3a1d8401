"""The race on one problem: every method at several tolerances, with all that it spends counted."""

import inspect
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from _reference import Reference, distance, flow, reference, vector
from _report import circumstances, median_ratio, time_pairs
from _rivals import Spent, by_scipy, by_torchdiffeq, dense_hessian, march, torchdiffeq
from _stiff import Stiff
from jax.flatten_util import ravel_pytree

import gflow

DEFAULT, GD, RK4 = "default", "GD at 2/λ", "RK4 at 1/λ"
TORCH, MISSING = "torchdiffeq dopri5", "not installed"
OWN = {
    name: solver()
    for name, solver in ((name, getattr(gflow.solvers, name)) for name in gflow.solvers.__all__)
    if inspect.isclass(solver) and issubclass(solver, gflow.solvers.AbstractFlowSolver)
    if not inspect.isabstract(solver)
}
EXPLICIT = {"Tsit5": diffrax.Tsit5(), "Dopri8": diffrax.Dopri8()}
DENSE = ("Kvaerno5", "scipy LSODA", "scipy BDF", "scipy Radau")
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
BETWEEN = (3e-3, 3e-4, 3e-5, 3e-6)  # of the default as well, because its errors scatter from run to run
# Seconds that a rival may take on a problem. Beyond, its count is that of a shorter horizon times the ratio
# of ∫λ dt (explicit methods), it is ∫λ dt itself (steps of a share of 1/λ), or it ends (dense Jacobians).
BUDGET = 150.0
LEAST = 0.2  # of ∫λ dt, from which to conclude on the rest
# Gradients of an adaptive explicit method per ∫λ dt, at its limit of stability.
AT_LIMIT = 3.3
LARGE, FITS_DENSE, FITS_EXPRB43, TINY = 100_000, 2000, 300, 100  # parameters
IN_FLOAT32 = ("P1, T=75", "P2, T=100", "P3, T=15")


class Price(NamedTuple):
    """What derivatives take: a gradient in seconds, the others in gradients."""

    seconds: float
    product: float  # of the Hessian with a vector
    column: float | None  # of a Jacobian that is made all at once, where it fits

    def cost(self, gradients: float, hvps: float, forms_jacobians: bool) -> float:
        """What a method spends that forms Jacobians, or one that doesn't."""
        product = self.column if forms_jacobians and self.column is not None else self.product
        return gradients + product * hvps


def measure(case: Stiff, cache: Path, quick: bool, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """All methods on one problem; with a result from `before` only gflow's, beside the rivals of that."""
    print(case.name, flush=True)
    known = reference(case, cache)
    price = price_of(case.problem)
    race = Race(case, known, price)
    race.own(TOLERANCES[1:3] if quick else TOLERANCES[:3] if case.costly else TOLERANCES)
    if before is None:
        race.steps_of_a_share()
    if not case.costly and before is None:
        # at 1e-3, which so many parameters meet on average, Tsit5 loses the path at its limit of stability
        race.explicit(TOLERANCES[1:2] if quick else (1e-4,) if race.large else (1e-3, 1e-5, 1e-6, 1e-7))
        if not quick:
            race.dense()
    if case.name in IN_FLOAT32 and not quick:
        race.in_float32()
    rows, dated = race.rows, {}
    if before is not None:
        rivals = [row for row in before["rows"] if row["method"] in (GD, RK4, TORCH, *EXPLICIT, *DENSE)]
        cost = lambda row: price.cost(row["gradients"], row["hvps"], row["method"] in DENSE)
        rows += [row | {"cost": cost(row)} for row in rivals]
        race.left_out |= {name: why for name, why in before["left_out"].items() if name not in OWN}
        dated = {"rivals_measured": before.get("rivals_measured", before["measured"])}
    return {
        "what": case.what,
        "parameters": case.problem.size,
        "horizon": case.horizon,
        "measured": circumstances(),
        "reference": known.how,
        "stiffness": known.stiffness,
        "sharpness": [float(known.sharpness[0]), float(known.sharpness[-1])],
        "gradient_seconds": price.seconds,
        "hvp_in_gradients": price.product,
        "column_in_gradients": price.column,
        "degree": {f"{error:.0e}": degree(known.stiffness, error) for error in (1e-3, 1e-5)},
        "left_out": race.left_out,
        "rows": rows,
    } | dated


class Race:
    """One problem, and what has been measured on it."""

    def __init__(self, case: Stiff, known: Reference, price: Price):
        self.case, self.known, self.price = case, known, price
        self.large = case.problem.size > LARGE
        self.budget = BUDGET * 3 if self.large else BUDGET  # where runs are few and long
        self.rows: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}

    def own(self, tolerances: tuple[float, ...]) -> None:
        """The default, and gflow's solvers by name."""
        between = [rtol for rtol in BETWEEN if tolerances[0] > rtol > tolerances[-1]]
        for rtol in sorted([*tolerances, *between], reverse=True):
            self.by_flow(DEFAULT, None, rtol)
        if self.rows[-1]["error"] > 2e-6 and tolerances[-1] == 1e-6:
            self.by_flow(DEFAULT, None, 3e-7)
        if self.case.costly:
            return
        for name, solver in OWN.items():
            if name == "EXPRB43" and self.case.problem.size > FITS_EXPRB43:
                self.left_out[name] = f"a dense Jacobian, for up to {FITS_EXPRB43} parameters"
                continue
            for rtol in tolerances[:3] if self.large else tolerances:
                self.by_flow(name, solver, rtol)

    def by_flow(self, method: str, solver: Any, rtol: float, **options: Any) -> None:
        """A run of `gflow.integrate`."""
        run = flow(self.case, solver=solver, rtol=rtol, atol=0.1 * rtol, **options)
        stats, until = run.stats, options.get("t_max", self.case.horizon)
        gradients, hvps, note = stats["gradients"], stats["hvps"] - stats["record_hvps"], ""
        if gradients is None:  # diffrax doesn't tell what its root finder spent
            gradients, hvps = 6 * stats["steps"], self.case.problem.size * stats["steps"]
            note = "at least: one Jacobian a step, no second evaluation of a stage"
        else:
            gradients -= stats["record_gradients"]
        seconds = max(0.0, stats["seconds"] - stats["compile_seconds"])
        spent = Spent(vector(run.model), gradients, hvps, until, seconds)
        more = {key: stats[key] for key in ("solver", "steps", "rejected", "compile_seconds")}
        if isinstance(solver, gflow.solvers.AbstractFlowSolver | None):
            more["radius_gradients"] = stats["radius_gradients"]
        if not run.ok:
            spent, note = spent._replace(until=0.0), run.reason
        self.note(method, rtol, spent, note, **more)

    def note(self, method: str, rtol: float | None, spent: Spent, note: str = "", **more: Any) -> None:
        """One more row. The counts of a run that ends before the horizon go on as ∫λ dt, unless noted."""
        gradients, hvps, error = float(spent.gradients), float(spent.hvps), None
        if spent.until >= self.case.horizon:
            error = distance(spent.params, self.known.params)
        elif not note and self.known.stiffness_until(spent.until) < LEAST * self.known.stiffness:
            self.left_out[method] = f"came only to {spent.until:.3g} in {spent.seconds:.0f} s"
            return
        elif not note:
            note = f"counted up to {spent.until:.3g}, then as ∫λ dt"
            scale = self.known.stiffness / self.known.stiffness_until(spent.until)
            gradients, hvps = scale * gradients, scale * hvps
        forms_jacobians = method in DENSE or "EXPRB43" in more.get("solver", "")
        row = {
            "method": method,
            "rtol": rtol,
            "cost": self.price.cost(gradients, hvps, forms_jacobians),
            "error": error,
            "gradients": gradients,
            "hvps": hvps,
            "seconds": spent.seconds,
            "note": note,
        }
        self.rows.append(row | more)
        shown = "-" if error is None else f"{error:.1e}"
        cost, seconds = f"{row['cost']:9.0f}", f"{spent.seconds:.1f} s"
        print(f"  {method:18} {rtol or 0:.0e} {cost} {shown} {seconds} {note}", flush=True)

    def steps_of_a_share(self) -> None:
        """Gradient descent at the edge of stability, and Runge-Kutta at 1/λ."""
        every = 5 if self.case.costly else 1  # λ there changes by a few per cent in so many steps
        for method, share, order in ((GD, 2.0, 1), (RK4, 1.0, 4)):
            if method == RK4 and self.case.costly:
                continue
            nominal = order * self.known.stiffness / share
            seconds = self.price.seconds * nominal * (1 + 3 * self.price.product / order / every)
            counted = Spent(np.zeros(0), round(nominal), 0, 0.0, 0.0)
            if seconds > self.budget:
                self.note(method, None, counted, "∫λ dt, not run")
                continue
            run = march(self.case.problem, self.case.horizon, share, order, round(4 * nominal) + 100, every)
            if run.until >= self.case.horizon:
                self.note(method, None, run)
            else:
                self.note(method, None, counted, "diverged; counted as ∫λ dt")

    def explicit(self, tolerances: tuple[float, ...]) -> None:
        """Explicit methods of fixed order, at their limit of stability where the problem is stiff."""
        most = self.budget / len(tolerances)
        stiffness = most / self.price.seconds / AT_LIMIT
        until = self.case.horizon if self.known.stiffness <= stiffness else self.known.time_at(stiffness)
        for name, solver in EXPLICIT.items():
            for rtol in tolerances:
                self.by_flow(name, solver, rtol, t_max=until)
        if torchdiffeq is None:
            self.left_out[TORCH] = MISSING
            return
        for rtol in tolerances[::2]:
            self.note(TORCH, rtol, by_torchdiffeq(self.case.problem, self.case.horizon, rtol, most))

    def dense(self) -> None:
        """Implicit methods that factor a dense Jacobian."""
        problem = self.case.problem
        if problem.size > FITS_DENSE:
            self.left_out |= dict.fromkeys(DENSE, f"a dense Jacobian of {problem.size} parameters")
            return
        hessian, flat = dense_hessian(problem), jax.numpy.asarray(vector(problem.params))
        seconds = median(s for s, _ in time_pairs(lambda: hessian(flat), lambda: hessian(flat), 1))
        most = round(self.budget / 4 / max(seconds, 1e-4))
        self.by_flow("Kvaerno5", diffrax.Kvaerno5(), 1e-3, max_steps=most)
        for method in DENSE[1:]:
            for rtol in (1e-3, 1e-5) if seconds < 0.1 else (1e-4,):
                name, horizon = method.removeprefix("scipy "), self.case.horizon
                run = by_scipy(problem, horizon, name, rtol, hessian, self.budget / 2)
                self.note(method, rtol, run, "" if run.until >= horizon else f"ended at {run.until:.3g}")

    def in_float32(self) -> None:
        """The default in single precision."""
        cast = lambda x: x.astype("float32") if eqx.is_inexact_array(x) else x
        problem = self.case.problem
        model, data = jtu.tree_map(cast, (problem.model(problem.params), problem.data))
        case = self.case._replace(problem=gflow.Problem(model, data, problem.loss))
        race = Race(case, self.known, self.price)
        for rtol in TOLERANCES[:4]:
            race.by_flow(f"{DEFAULT}, float32", None, rtol)
        self.rows += race.rows


def price_of(problem: gflow.Problem) -> Price:
    """What derivatives take, in compiled loops, which are long enough for the call of one not to matter."""
    few = problem.size <= TINY
    many, repeats = (2, 5) if problem.size > LARGE else (5000 if few else 50, 15)

    def loop(function, count):
        move = lambda _, p: jtu.tree_map(lambda x, d: x - 1e-9 * d, p, function(p))
        compiled = eqx.filter_jit(lambda p: jax.lax.fori_loop(0, count, move, p))
        return lambda: compiled(problem.params)

    gradient = loop(problem.gradient, many)
    pairs = time_pairs(loop(lambda p: problem.hvp(p, p), many), gradient, repeats)
    column = None
    if problem.size <= FITS_DENSE:
        unravel = ravel_pytree(problem.params)[1]
        flat, jacobian = lambda p: ravel_pytree(p)[0], dense_hessian(problem)
        some = many if few else 2  # the product, which keeps all columns from being left out, is cheap
        columns = time_pairs(loop(lambda p: unravel(jacobian(flat(p)) @ flat(p)), some), gradient, 5)
        column = median_ratio(columns) * many / (some * problem.size)
    return Price(median(second for _, second in pairs) / many, median_ratio(pairs), column)


def degree(stiffness: float, error: float) -> int:
    """Smallest degree of a Chebyshev expansion of exp(-x) on [0, `stiffness`] with tail ≤ `error`."""
    from scipy.special import ive

    coefficients = 2 * ive(np.arange(4000), stiffness / 2)  # of exp(-x), by its generating function
    tails = np.cumsum(coefficients[::-1])[::-1]
    return int(np.argmax(tails <= error)) - 1
