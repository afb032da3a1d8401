"""The race of solvers: gradients spent for the error reached, on stiff and nonstiff gradient flows.

    python benchmarks/solvers.py [--quick] [--only PROBLEM] [--output DIR]

Every problem has a reference by Dopri8 at tight tolerances, cross-checked by a second method. Errors are
‖θ(T) − reference‖ / ‖reference‖. Costs are gradients, with everything counted that a method spends on
the curvature (Hessian-vector products, where there are any, at their measured price in gradients).
Rivals: the solvers of diffrax in the same integrator, gradient descent with η = 2/λ(t) and the classical
Runge-Kutta method with steps 1/λ(t), both following the sharpness λ, and scipy's LSODA and BDF where a
dense Jacobian fits. `degree` is the smallest degree of a polynomial that can damp the same stiffness
∫λ dt in one step: a bound for all explicit methods on a linear problem.
"""

import warnings
from time import perf_counter
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from _report import paired_ratio, parse, stored, table, write
from _stiff import (
    Stiff,
    convolutional,
    degree,
    digits_network,
    factorisation,
    march,
    mnist_network,
    separable,
    vector,
)
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import gflow

OWN = {"RKC2": gflow.solvers.RKC2(), "RKC3": gflow.solvers.RKC3(), "EXPRB32": gflow.solvers.EXPRB32()}
DIFFRAX = {"Tsit5": diffrax.Tsit5(), "Dopri8": diffrax.Dopri8()}
# Gradients times parameters beyond which gradient descent and Runge-Kutta are counted, not run.
MOST_WORK = 1e8


def problems(quick: bool) -> list[Stiff]:
    """From nonstiff to very stiff."""
    squared, entropy = gflow.losses.Squared(), gflow.losses.CrossEntropy()
    short = [digits_network(75.0, squared, "P1, T=75"), factorisation(15.0, "P3, T=15")]
    if quick:
        return [factorisation(15.0, "P3, T=15")]
    return [
        digits_network(100.0, entropy, "P2, T=100"),
        *short,
        digits_network(400.0, squared, "P1, T=400"),
        factorisation(150.0, "P3, T=150"),
        factorisation(1500.0, "P3, T=1500"),
        factorisation(25.0, "P3, scale 0.01, T=25", 0.01),
        mnist_network(1000, 40.0, "P4, T=40"),
        convolutional(20.0, "conv, T=20"),
        separable(1e5, "logistic, T=1e5"),
    ]


def flow(case: Stiff, **options: Any) -> gflow.Trajectory:
    """`gflow.integrate` to the horizon of the problem, recorded at both ends only."""
    problem = case.problem
    return gflow.integrate(
        problem.model(problem.params),
        problem.data,
        case.horizon,
        loss=problem.loss,
        **({"save_at": 2, "max_steps": 400_000, "throw": False} | options),
    )


def reference(case: Stiff) -> tuple[np.ndarray, dict[str, Any]]:
    """θ(T), and how it was obtained."""
    exact = flow(case, solver=diffrax.Dopri8(), rtol=1e-10, atol=1e-13)
    looser = flow(case, solver=gflow.solvers.RKC3(), rtol=1e-6, atol=1e-10)
    watched = flow(
        case, rtol=1e-4, save_at=101, observe=[gflow.observe.Sharpness(rtol=1e-2)], solver=OWN["EXPRB32"]
    )
    theta = vector(exact.model)
    stiffness = float(np.trapezoid(np.maximum(watched["sharpness"], 0), watched.t))
    return theta, {
        "status": exact.status,
        "gradients": own_gradients(exact),
        "checked_by": "RKC3, rtol 1e-6",
        "difference": distance(vector(looser.model), theta),
        "final_loss": float(exact.loss[-1]),
        "stiffness": stiffness,
        "sharpness": [float(watched["sharpness"][0]), float(watched["sharpness"][-1])],
    }


def own_gradients(trajectory: gflow.Trajectory) -> int | None:
    """What the path itself took, without the records."""
    stats = trajectory.stats
    return None if stats["gradients"] is None else stats["gradients"] - stats["record_gradients"]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖ / ‖b‖"""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def row(method: str, rtol: float | None, cost: float | None, error: float, **more: Any) -> dict[str, Any]:
    """One line of the table."""
    return {"method": method, "rtol": rtol, "cost": cost, "error": error} | more


def adaptive(case: Stiff, theta: np.ndarray, quick: bool, price: float) -> list[dict[str, Any]]:
    """gflow's and diffrax's solvers at several tolerances."""
    rows = []
    tolerances = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    for name, solver in {"default": None, **OWN, **DIFFRAX}.items():
        chosen = tolerances[1:2] if quick else tolerances
        if name in DIFFRAX and not quick:
            chosen = (1e-3, 1e-6)  # their cost hardly depends on it where stability limits the step
        elif case.problem.size > 1e5:
            chosen = tolerances[:3]
        for rtol in chosen:
            same = [r for r in rows if r["rtol"] == rtol and r["solver"] == name]
            if same:  # it was the default's choice
                rows.append(same[0] | {"method": name})
                continue
            run = flow(case, solver=solver, rtol=rtol, atol=0.1 * rtol)
            gradients = own_gradients(run)
            assert gradients is not None
            rows.append(
                row(
                    name,
                    rtol,
                    gradients + price * (run.stats["hvps"] - run.stats["record_hvps"]),
                    distance(vector(run.model), theta),
                    solver=run.stats["solver"],
                    steps=run.stats["steps"],
                    rejected=run.stats["rejected"],
                    status=run.status,
                    seconds=run.stats["seconds"] - run.stats["compile_seconds"],
                    compile_seconds=run.stats["compile_seconds"],
                )
            )
            print(f"  {name:8} {rtol:.0e} {rows[-1]['cost']:8.0f} {rows[-1]['error']:.1e}", flush=True)
    return rows


def classical(case: Stiff, theta: np.ndarray, stiffness: float, price: float) -> list[dict[str, Any]]:
    """Gradient descent at the edge of stability and Runge-Kutta at 1/λ, counted with their HVPs."""
    rows = []
    for name, share, order in (("GD at 2/λ", 2.0, 1), ("RK4 at 1/λ", 1.0, 4)):
        nominal = order * stiffness / share
        if nominal * case.problem.size > MOST_WORK:
            rows.append(row(name, None, nominal, np.nan, gradients=nominal, note="∫λ dt, not run"))
            continue
        run = march(case.problem, case.horizon, share, order, round(4 * nominal) + 100)
        error = distance(run.params, theta) if run.finished else np.nan
        note = "" if run.finished else "diverged; gradients from ∫λ dt"
        gradients = run.gradients if run.finished else nominal
        rows.append(row(name, None, gradients + price * run.hvps, error, gradients=gradients, note=note))
        print(f"  {name} {gradients:.0f} + {run.hvps} hvps, error {error:.1e} {note}", flush=True)
    return rows


def scipy_solvers(case: Stiff, theta: np.ndarray) -> list[dict[str, Any]]:
    """LSODA and BDF with dense Jacobians by differences, each column of which costs a gradient."""
    flat, unravel = ravel_pytree(case.problem.params)
    if flat.size > 2000:
        return []
    gradient = jax.jit(lambda y: ravel_pytree(case.problem.gradient(unravel(y)))[0])
    rows = []
    for method in ("LSODA", "BDF"):
        count = [0]

        def field(t, y, count=count):
            del t
            count[0] += 1
            return -np.asarray(gradient(jnp.asarray(y)))

        for rtol in (1e-3, 1e-5):
            count[0] = 0
            began = perf_counter()
            found = solve_ivp(field, (0, case.horizon), flat, method=method, rtol=rtol, atol=0.1 * rtol)
            rows.append(
                row(
                    f"scipy {method}",
                    rtol,
                    count[0],
                    distance(found.y[:, -1], theta),
                    seconds=perf_counter() - began,
                )
            )
            print(f"  scipy {method} {rtol:.0e} {count[0]} {rows[-1]['error']:.1e}", flush=True)
    return rows


def price_of_hvp(case: Stiff) -> float:
    """The time of a Hessian-vector product in gradients."""
    problem = case.problem
    gradient = eqx.filter_jit(lambda p: problem.gradient(p))
    product = eqx.filter_jit(lambda p: problem.hvp(p, jtu.tree_map(jnp.ones_like, p)))
    return paired_ratio(lambda: product(problem.params), lambda: gradient(problem.params), 15)


def at_error(rows: list[dict[str, Any]], method: str, error: float) -> float | None:
    """The cost at that error, interpolated in the logarithms between runs.

    That of the cheapest run if all are more accurate, None if all are less, or for a single run.
    """
    points = sorted((r["error"], r["cost"]) for r in rows if r["method"] == method and r["error"] > 0)
    if len(points) < 2 or error < points[0][0]:
        return None
    if error > points[-1][0]:
        return min(cost for _, cost in points)
    x, y = np.log(np.array(points)).T
    return float(np.exp(np.interp(np.log(error), x, y)))


def summary(name: str, result: dict[str, Any]) -> list[Any]:
    """Costs of the methods at an error of 1e-3, the bound, and the range of error / rtol."""
    rows = result["rows"]
    cells: list[Any] = [name, result["reference"]["stiffness"], result["degree"]["1e-3"]]
    for method in ("default", *OWN, *DIFFRAX):
        cost = at_error(rows, method, 1e-3)
        cells.append(None if cost is None else round(cost))
    for method in ("GD at 2/λ", "RK4 at 1/λ"):
        cells.append(next((round(r["gradients"]) for r in rows if r["method"] == method), None))
    delivered = [r["error"] / r["rtol"] for r in rows if r["method"] == "default"]
    return [*cells, min(delivered), max(delivered)]


def measure(case: Stiff, quick: bool) -> dict[str, Any]:
    """All methods on one problem."""
    print(case.name, flush=True)
    theta, how = reference(case)
    price = price_of_hvp(case)
    rows = adaptive(case, theta, quick, price)
    if case.problem.size > 10:  # in log-loss time there is no stiffness to count steps from
        rows += classical(case, theta, how["stiffness"], price)
    if not quick:
        rows += scipy_solvers(case, theta)
    return {
        "what": case.what,
        "parameters": case.problem.size,
        "horizon": case.horizon,
        "reference": how,
        "hvp_in_gradients": price,
        "degree": {f"1e-{k}": degree(how["stiffness"], 10.0**-k) for k in (3, 5)},
        "rows": rows,
    }


def rendered(results: dict[str, Any]) -> str:
    """The table that the docs show."""
    header = ["problem", "∫λ dt", "degree", "default", *OWN, *DIFFRAX]
    header += ["GD at 2/λ", "RK4 at 1/λ", "error / rtol from", "to"]
    return table(header, (summary(*item) for item in results["problems"].items()))


def draw(results: dict[str, Any], path: Any) -> None:
    """Error against cost for each problem."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    cases = results["problems"]
    columns = min(len(cases), 4)
    lines = -(-len(cases) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.6 * columns, 3.2 * lines), squeeze=False)
    for ax in axes.flat[len(cases) :]:
        ax.set_axis_off()
    colours = dict(zip(["default", *OWN, *DIFFRAX], ["black", "C0", "C1", "C2", "C3", "C4"], strict=True))
    for ax, (name, result) in zip(axes.flat, cases.items(), strict=False):
        for method, colour in colours.items():
            points = [(r["cost"], r["error"]) for r in result["rows"] if r["method"] == method]
            style = {"lw": 4, "alpha": 0.25} if method == "default" else {"marker": "o", "ms": 3}
            ax.loglog(*zip(*points, strict=True), color=colour, label=method, **style)
        for method, marker in (("GD at 2/λ", "v"), ("RK4 at 1/λ", "^")):
            for r in result["rows"]:
                if r["method"] == method and r["error"] is not None and np.isfinite(r["error"]):
                    ax.loglog(r["gradients"], r["error"], marker, color="grey", label=method)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("gradients")
        ax.set_ylabel("error of θ(T)")
        ax.xaxis.set_minor_formatter(NullFormatter())  # within one decade they would overlap
    axes[0, 0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the race, prints the table and writes the files."""
    arguments = parse(__doc__, part="problem")
    jax.config.update("jax_enable_x64", True)
    warnings.filterwarnings("ignore", message="the loss rose")
    path = arguments.output / "solvers.json"
    cases = {case.name: case for case in problems(arguments.quick)}
    measured: dict[str, Any] = {}
    results: dict[str, Any] = {}
    if arguments.only is not None:
        if arguments.only not in cases:
            raise SystemExit(f"--only must be one of {', '.join(map(repr, cases))}, not {arguments.only!r}")
        measured = stored("solvers", arguments.output).get("problems", {})
    for name, case in cases.items():
        if arguments.only in (None, name):
            measured[name] = measure(case, arguments.quick)
            ordered = {key: measured[key] for key in cases if key in measured}
            results = {"quick": arguments.quick, "problems": ordered}
            write("solvers", results, arguments.output)  # after each, so that nothing is lost
    text = rendered(results)
    print(text)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    draw(results, path.with_suffix(".png"))
    print(f"\n{path} written")


if __name__ == "__main__":
    main()
