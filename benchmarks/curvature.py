"""What eigenvalues of the Hessian cost: followed along gradient descent, and at one place.

    python benchmarks/curvature.py [--quick] [--output DIR]

1. The sharpness, and the five largest eigenvalues, in every step of descent (tanh network
   64-24-24-10, 300 digits, squared error, η = 0.4, 500 steps), before the loss first rises (the onset)
   and after it: Hessian-vector products (HVPs) and errors of `gflow.observe.Sharpness` in all steps, of
   other methods in a sample of steps. "Cold" starts from a random vector, "warm" from exact
   eigenvectors of the step before.
2. The largest and the six largest at three places of that path, to a relative residual of 1e-6.
3. The time of descent on 5000 MNIST digits with the sharpness recorded every 10 steps.
4. The first four moments of the spectral density at the last of the three places, against the dense Hessian.
5. The largest eigenvalue there by libraries for torch, those of the extra `torch` that are installed.

Errors are relative, against scipy's eigsh at machine precision in float64. Every application of the
Hessian to a vector is counted where it happens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import matfree.decomp
import matfree.eig
import numpy as np
import scipy.sparse.linalg
from _networks import digits, mnist, network
from _report import median_ratio, parse, seconds, table, time_pairs, write
from _torch import methods as torch_methods
from jax.experimental.sparse.linalg import lobpcg_standard
from jax.flatten_util import ravel_pytree

import gflow

arpack: Any = scipy.sparse.linalg  # its inline types don't know LinearOperator(shape, matvec)
RATE = 0.4
SIZES = (64, 24, 24, 10)


@dataclass
class Answer:
    """Eigenvalues in descending order, the vectors as columns, and what they took."""

    values: np.ndarray
    vectors: np.ndarray
    hvps: int


class Hessian:
    """v ↦ ∇²L(θ) v as a function of flat vectors, compiled once for all θ, and counted."""

    def __init__(self, problem: gflow.Problem):
        flat, unravel = ravel_pytree(problem.params)
        self.size, self.dtype, self.count = flat.size, flat.dtype, 0
        self.problem = problem

        def product(theta, v):
            return ravel_pytree(problem.hvp(unravel(theta), unravel(v)))[0]

        self.product = product
        self.compiled = jax.jit(product)

    def counted(self, theta: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """For use inside jit, on a vector or on the columns of a matrix."""

        def add(columns):
            self.count += columns

        def matvec(v):
            jax.debug.callback(add, 1 if v.ndim == 1 else v.shape[1])
            return (
                self.product(theta, v) if v.ndim == 1 else jax.vmap(lambda u: self.product(theta, u), 1, 1)(v)
            )

        return matvec

    def spent(self) -> int:
        """Products since the last call."""
        jax.effects_barrier()
        count, self.count = self.count, 0
        return count


Method = Callable[[jax.Array, np.ndarray], Answer]


def by_scipy(hessian: Hessian, k: int, tol: float, dtype: Any = None) -> Method:
    """eigsh with its default subspace; ARPACK's Lanczos restarted implicitly."""

    def run(theta, start):
        count = 0

        def matvec(v):
            nonlocal count
            count += 1
            return np.asarray(hessian.compiled(theta, jnp.asarray(v.ravel(), hessian.dtype)))

        shape = (hessian.size, hessian.size)
        operator = arpack.LinearOperator(shape, matvec=matvec, dtype=dtype or hessian.dtype)
        values, vectors = arpack.eigsh(operator, k=k, which="LA", tol=tol, v0=start[:, 0])
        return Answer(values[::-1], vectors[:, ::-1], count)

    return run


def by_lobpcg(hessian: Hessian, k: int, tol: float) -> Method:
    """JAX's own block method; `tol` as residual relative to the eigenvalue."""
    # jax stops at tol·10·n·(λ + ‖A v‖), which is about 20 n tol λ
    scaled = tol / (20 * hessian.size)

    @jax.jit
    def solve(theta, start):
        return lobpcg_standard(hessian.counted(theta), start, m=300, tol=scaled)

    def run(theta, start):
        values, vectors, _ = solve(theta, jnp.asarray(start[:, :k], hessian.dtype))
        return Answer(np.asarray(values), np.asarray(vectors), hessian.spent())

    return run


def by_power(hessian: Hessian, k: int, tol: float) -> Method:
    """Power iteration until λ changes by less than `tol`, pair by pair, deflated; as PyHessian does."""

    @jax.jit
    def one(theta, start, found):
        matvec = hessian.counted(theta)

        def clean(v):
            v = v - found @ (found.T @ v)
            return v / jnp.linalg.norm(v)

        def step(state):
            v, value, _, i = state
            w = matvec(v)
            return clean(w), v @ w, jnp.abs(v @ w - value) / jnp.abs(v @ w), i + 1

        going = lambda state: (state[2] > tol) & (state[3] < 1000)
        first = (clean(start), jnp.zeros((), start.dtype), jnp.array(jnp.inf, start.dtype), 0)
        v, value, _, _ = jax.lax.while_loop(going, step, first)
        return v, value

    def run(theta, start):
        found, values = jnp.zeros((hessian.size, k), hessian.dtype), []
        for i in range(k):
            v, value = one(theta, jnp.asarray(start[:, i], hessian.dtype), found)
            found, values = found.at[:, i].set(v), [*values, float(value)]
        return Answer(np.asarray(values), np.asarray(found), hessian.spent())

    return run


def by_matfree(hessian: Hessian, k: int, steps: int) -> Method:
    """matfree's Lanczos with a fixed number of steps and full reorthogonalisation."""

    @jax.jit
    def solve(theta, start):
        find = matfree.eig.eigh_partial(matfree.decomp.tridiag_sym(steps, reortho="full"))
        values, vectors = find(lambda v: hessian.product(theta, v), start)
        return values[::-1][:k], vectors[::-1][:k].T

    def run(theta, start):
        values, vectors = solve(theta, jnp.asarray(start[:, 0], hessian.dtype))
        return Answer(np.asarray(values), np.asarray(vectors), steps)

    return run


def by_gflow(hessian: Hessian, k: int, rtol: float) -> Method:
    """`gflow.curvature.top_eigenpairs`."""
    problem = hessian.problem
    unravel = ravel_pytree(problem.params)[1]

    def run(theta, start):
        key = jax.random.key(abs(int(1e6 * start[0, 0])))
        pairs = gflow.curvature.top_eigenpairs(problem, k, params=unravel(theta), rtol=rtol, key=key)
        vectors = jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors)
        return Answer(np.asarray(pairs.values), np.asarray(vectors).T, int(pairs.hvps))

    return run


@dataclass
class Path:
    """Descent with the eigenvalues that gflow recorded, and exact ones in a sample of steps."""

    hessian: Hessian
    thetas: jax.Array
    onset: int
    recorded: dict[int, tuple[np.ndarray, np.ndarray]]  # by k: values and HVPs
    sample: np.ndarray
    exact: np.ndarray  # the 8 largest at the sampled steps


def descent(seed: int, dtype: str, steps: int, sample: int, ks: tuple[int, ...]) -> Path:
    """The path of gradient descent and what is known of it."""
    cast = lambda leaf: leaf.astype(dtype) if is_float(leaf) else leaf
    model, data = jtu.tree_map(cast, (network(SIZES, seed), digits(300)))
    recorded, losses, models = {}, np.zeros(0), model
    for k in ks:
        observe = [gflow.observe.Sharpness(k=k)]
        run = gflow.descend(model, data, RATE, steps, save_every=1, save_models=True, observe=observe)
        values = np.asarray(run["sharpness"], np.float64).reshape(steps + 1, k)
        recorded[k] = values, run["sharpness_hvps"]
        losses, models = np.asarray(run.step_loss), run.models
    problem = gflow.Problem(model, data)
    leaves = jtu.tree_leaves(arrays_of(models))
    thetas = jnp.concatenate([leaf.reshape(steps + 1, -1) for leaf in leaves], axis=1)
    crossed = recorded[ks[0]][0][1:, 0] > 2 / RATE
    rises = np.flatnonzero((np.diff(losses) > 0) & crossed) + 1
    onset = int(rises[0]) if rises.size else steps
    # both phases of the oscillation are in it
    chosen = np.unique(np.linspace(1, steps, sample).astype(int) // 2 * 2 + np.arange(sample) % 2)
    chosen = chosen[(chosen > 0) & (chosen <= steps)]
    double = jtu.tree_map(
        lambda leaf: leaf.astype("float64") if is_float(leaf) else leaf,
        (network(SIZES, seed), digits(300)),
    )
    exactly = by_scipy(Hessian(gflow.Problem(*double)), 8, 0.0)
    start = np.random.default_rng(0).normal(size=(thetas.shape[1], 1))
    exact = np.stack([exactly(thetas[i].astype("float64"), start).values for i in chosen])
    return Path(Hessian(problem), thetas, onset, recorded, chosen, exact)


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a floating array."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def arrays_of(models: Any) -> Any:
    """The arrays of stacked models."""
    return jtu.tree_map(lambda leaf: leaf if is_float(leaf) else None, models)


def summary(hvps: np.ndarray, errors: np.ndarray, taken: float | None = None) -> dict[str, Any]:
    """HVPs a record, and errors, over records."""
    return {
        "records": len(errors),
        "hvps": float(np.mean(hvps)),
        "most_hvps": int(np.max(hvps)),
        "median_error": float(np.median(errors)),
        "largest_error": float(np.max(errors)),
        "milliseconds": None if taken is None else 1e3 * taken,
    }


def tracking(path: Path, k: int, methods: dict[str, tuple[Method, bool]]) -> list[dict[str, Any]]:
    """A row a method and phase; methods other than gflow's on the sample."""
    values, hvps = path.recorded[k]
    steps = np.arange(len(values))
    before = path.sample < path.onset
    rows = []

    def add(name, phase, *numbers):
        rows.append({"k": k, "method": name, "phase": phase} | summary(*numbers))

    error = np.max(np.abs(values[path.sample] / path.exact[:, :k] - 1), axis=1)
    for phase, chosen, all_ in (
        ("before", before, steps < path.onset),
        ("after", ~before, steps >= path.onset),
    ):
        if chosen.any():
            add("gflow", phase, hvps[all_], error[chosen])
    for name, (method, warm) in methods.items():
        counts, errors, times = [], [], []
        for i, exact in zip(path.sample, path.exact, strict=True):
            start = np.random.default_rng(i).normal(size=(path.hessian.size, k))
            if warm:
                start = by_scipy(path.hessian, k, 1e-6)(path.thetas[i - 1], start).vectors
            method(path.thetas[i], start) if not times else None  # compile
            answers: list[Answer] = []
            theta = path.thetas[i]
            times.append(seconds(lambda v=start, t=theta, to=answers, f=method: to.append(f(t, v))))
            counts.append(answers[0].hvps)
            errors.append(np.max(np.abs(np.asarray(answers[0].values, np.float64) / exact[:k] - 1)))
        for phase, chosen in (("before", before), ("after", ~before)):
            if chosen.any():
                add(name, phase, np.array(counts)[chosen], np.array(errors)[chosen], median(times))
    return rows


def followed(hessian: Hessian, k: int) -> dict[str, tuple[Method, bool]]:
    """The other methods of part 1, and whether they start warm."""
    return {
        "eigsh cold, tol 1e-3": (by_scipy(hessian, k, 1e-3), False),
        "eigsh cold, tol 0": (by_scipy(hessian, k, 0.0), False),
        "LOBPCG cold": (by_lobpcg(hessian, k, 1e-3), False),
        "LOBPCG warm": (by_lobpcg(hessian, k, 1e-3), True),
        "power cold": (by_power(hessian, k, 1e-3), False),
        "power warm": (by_power(hessian, k, 1e-3), True),
        "matfree Lanczos 20": (by_matfree(hessian, k, 20), False),
    }


def at_one_place(path: Path, ks: tuple[int, ...], starts: int) -> list[dict[str, Any]]:
    """Means over places and random starts, at a relative residual of 1e-6."""
    rows = []
    places = np.unique(np.linspace(0, len(path.sample) - 1, 3).astype(int))
    for k in ks:
        methods = {
            "gflow": by_gflow(path.hessian, k, 1e-6),
            "eigsh": by_scipy(path.hessian, k, 1e-6),
            "LOBPCG": by_lobpcg(path.hessian, k, 1e-6),
            "power": by_power(path.hessian, k, 1e-9),
            "matfree Lanczos 40": by_matfree(path.hessian, k, 40),
        }
        for name, method in methods.items():
            counts, errors, residuals, times = [], [], [], []
            for place in places:
                theta = path.thetas[path.sample[place]]
                for seed in range(starts):
                    start = np.random.default_rng(seed).normal(size=(path.hessian.size, k))
                    method(theta, start) if not times else None  # compile
                    answers: list[Answer] = []
                    times.append(seconds(lambda v=start, t=theta, to=answers, f=method: to.append(f(t, v))))
                    (answer,) = answers
                    counts.append(answer.hvps)
                    errors.append(np.max(np.abs(answer.values / path.exact[place, :k] - 1)))
                    products = [path.hessian.compiled(theta, jnp.asarray(v)) for v in answer.vectors.T]
                    rest = np.asarray(products).T - answer.vectors * answer.values
                    residuals.append(np.max(np.linalg.norm(rest, axis=0) / np.abs(answer.values)))
            row = {"k": k, "method": name} | summary(np.array(counts), np.array(errors), median(times))
            rows.append(row | {"largest_residual": float(np.max(residuals))})
    return rows


Density = Callable[[jax.Array, int], tuple[np.ndarray, np.ndarray, int]]  # nodes, weights, HVPs


def density_by_gflow(hessian: Hessian, outliers: int, probes: int, steps: int) -> Density:
    """`gflow.curvature.spectral_density`."""
    unravel = ravel_pytree(hessian.problem.params)[1]

    def run(theta, seed):
        found = gflow.curvature.spectral_density(
            hessian.problem,
            params=unravel(theta),
            key=jax.random.key(seed),
            outliers=outliers,
            probes=probes,
            steps=steps,
        )
        return np.asarray(found.nodes), np.asarray(found.weights), int(found.hvps)

    return run


def density_by_matfree(hessian: Hessian, probes: int, steps: int) -> Density:
    """Stochastic Lanczos quadrature by matfree's Lanczos iterations, from independent random vectors."""
    tridiagonalise = matfree.decomp.tridiag_sym(steps, reortho="full")

    @jax.jit
    def solve(theta, starts):
        def of_probe(z):
            values, vectors = jnp.linalg.eigh(
                tridiagonalise(lambda v: hessian.product(theta, v), z / jnp.linalg.norm(z)).J_small
            )
            return values, vectors[0] ** 2

        return jax.lax.map(of_probe, starts)

    def run(theta, seed):
        starts = jax.random.normal(jax.random.key(seed), (probes, hessian.size), hessian.dtype)
        nodes, weights = solve(theta, starts)
        return np.ravel(nodes), np.ravel(weights) / probes, probes * steps

    return run


def moments(path: Path, seeds: int, ways: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """Errors of (1/P) tr Hᵖ, p = 1 … 4, at the last sampled step, over random keys.

    `ways` are outliers, probes and steps of gflow's; matfree's has as many products.
    """
    theta, hessian = path.thetas[path.sample[-1]], path.hessian
    rows_of = jax.jit(lambda vs: jax.lax.map(lambda v: hessian.product(theta, v), vs, batch_size=64))
    eigenvalues = np.linalg.eigvalsh(np.asarray(rows_of(jnp.eye(hessian.size, dtype=hessian.dtype))))
    exact = np.array([np.mean(eigenvalues**p) for p in range(1, 5)])
    rows = []
    for way in ways:
        gflows = density_by_gflow(hessian, *way)
        probes = gflows(theta, 0)[2] // way[2]
        others = density_by_matfree(hessian, probes, way[2])
        for name, density in (
            (f"gflow, outliers={way[0]}, probes={way[1]}, steps={way[2]}", gflows),
            (f"matfree, {probes} probes, {way[2]} steps", others),
        ):
            density(theta, 0)  # compile
            errors, counts, times = [], [], []
            for seed in range(seeds):
                answers: list[Any] = []
                times.append(seconds(lambda s=seed, to=answers, f=density: to.append(f(theta, s))))
                ((nodes, weights, hvps),) = answers
                counts.append(hvps)
                errors.append([abs(np.sum(weights * nodes**p) / exact[p - 1] - 1) for p in range(1, 5)])
            worst = np.max(errors, axis=0)
            row = {"method": name, "hvps": float(np.mean(counts)), "milliseconds": 1e3 * median(times)}
            rows.append(row | {f"moment {p}": float(worst[p - 1]) for p in range(1, 5)})
    return rows


def in_torch(path: Path, starts: int) -> dict[str, Any]:
    """The largest eigenvalue at the last sampled step by torch's libraries, and which are left out."""
    theta, problem = path.thetas[path.sample[-1]], path.hessian.problem
    model = problem.model(ravel_pytree(problem.params)[1](theta))
    layers = [(np.asarray(layer.weight), np.asarray(layer.bias)) for layer in model.layers]
    found, missing = torch_methods(layers, problem.data)
    rows = []
    for name, method in found.items():
        answers = [method(seed) for seed in range(starts)]
        counts = np.array([hvps for _, hvps in answers])
        errors = np.array([abs(value / path.exact[-1, 0] - 1) for value, _ in answers])
        rows.append({"k": 1, "method": name} | summary(counts, errors))
    return {"rows": rows, "left_out": missing}


def recording(steps: int, repeats: int) -> dict[str, Any]:
    """Descent on all of MNIST-5k with and without the sharpness in every tenth step."""
    model, data = jtu.tree_map(
        lambda leaf: leaf.astype("float32") if is_float(leaf) else leaf,
        (network((784, 40, 40, 10)), mnist(5000)),
    )
    observe = [gflow.observe.Sharpness()]
    run = lambda **more: gflow.descend(model, data, 0.1, steps, save_every=10, **more)
    pairs = time_pairs(lambda: run(observe=observe), run, repeats)
    hvps = run(observe=observe)["sharpness_hvps"]
    return {
        "steps": steps,
        "seconds": pairs,
        "ratio": median_ratio(pairs),
        "hvps_per_record": float(hvps.mean()),
    }


def verdicts(results: dict[str, Any]) -> list[list[Any]]:
    """Rows of what was asked, the worst that was measured, and whether it will do."""
    rows: list[list[Any]] = []

    def judge(what: str, value: float, most: float) -> None:
        if not np.isnan(value):  # the quick form leaves some out
            rows.append([what, value, f"≤ {most:g}", value <= most])

    def worst(k, phase, name):
        found = [
            r[name]
            for p in results["tracking"]
            for r in p["rows"]
            if (r["k"], r["phase"], r["method"]) == (k, phase, "gflow")
        ]
        return max(found, default=float("nan"))

    judge("λ₁, before the onset: HVPs a step", worst(1, "before", "hvps"), 3)
    judge("λ₁, before the onset: largest error", worst(1, "before", "largest_error"), 1e-4)
    judge("λ₁, after: HVPs a step", worst(1, "after", "hvps"), 8)
    judge("λ₁, after: median error", worst(1, "after", "median_error"), 1e-4)
    judge("λ₁, after: largest error", worst(1, "after", "largest_error"), 1e-2)
    for phase in ("before", "after"):
        judge(f"five largest, {phase}: HVPs a step", worst(5, phase, "hvps"), 15)
        judge(f"five largest, {phase}: largest error", worst(5, phase, "largest_error"), 1e-3)
    of = {(r["k"], r["method"]): r["hvps"] for r in results["one_place"]}
    judge("one place, top 1: HVPs / eigsh's", of[1, "gflow"] / of[1, "eigsh"], 1)
    judge("one place, top 6: HVPs / eigsh's", of[6, "gflow"] / of[6, "eigsh"], 0.7)
    judge("MNIST-5k: time with sharpness / without", results["recording"]["ratio"], 1.6)
    worst_moment = max(results["density"][0][f"moment {p}"] for p in range(1, 5))
    judge("density: worst error of four moments", worst_moment, 0.02)
    return rows


def draw(results: dict[str, Any], path: Any) -> None:
    """Error against HVPs, before and after the onset, at one place."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    first = results["tracking"][0]["rows"]
    names = list(dict.fromkeys(row["method"] for row in first))
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    panels = [
        ("λ₁ in each step, before the onset", [r for r in first if r["k"] == 1 and r["phase"] == "before"]),
        ("λ₁ in each step, after the onset", [r for r in first if r["k"] == 1 and r["phase"] == "after"]),
        ("six largest at one place", [r for r in results["one_place"] if r["k"] == 6]),
    ]
    names += [r["method"] for r in results["one_place"] if r["method"] not in names]
    colors = plt.colormaps["tab20"]
    style = {
        n: {"color": "black" if n == "gflow" else colors(i % 20), "marker": "os^v<>DPX*ph"[i % 12]}
        for i, n in enumerate(names)
    }
    for ax, (title, rows) in zip(axes, panels, strict=True):
        for row in rows:
            low, high = row["median_error"], row["largest_error"]
            ax.plot(
                [row["hvps"]] * 2,
                [max(low, 1e-16), max(high, 1e-16)],
                color=style[row["method"]]["color"],
                lw=1,
            )
            ax.plot(row["hvps"], max(low, 1e-16), ls="", label=row["method"], **style[row["method"]])
        ax.set(title=title, xlabel="Hessian-vector products", xscale="log", yscale="log")
        ax.grid(color="0.9", lw=0.6)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("relative error: median, line to the largest")
    shown: dict[str, Any] = {}
    for ax in axes:
        shown |= {str(line.get_label()): line for line in ax.lines if line.get_marker() != "None"}
    figure.legend(shown.values(), shown, loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs everything, prints the tables and writes the files."""
    arguments = parse(__doc__)
    quick = arguments.quick
    jax.config.update("jax_enable_x64", True)
    results: dict[str, Any] = {"quick": quick, "tracking": []}
    runs = [(0, "float32")] if quick else [(s, d) for s in range(3) for d in ("float32", "float64")]
    for i, (seed, dtype) in enumerate(runs):
        ks = (1,) if quick else (1, 5)
        path = descent(seed, dtype, 210 if quick else 500, 10 if quick else 40, ks)
        rows = []
        for k in ks:
            others = followed(path.hessian, k) if i == 0 else {}
            if quick:
                others = {name: others[name] for name in ("eigsh cold, tol 1e-3", "power warm")}
            rows += tracking(path, k, others)
        results["tracking"].append({"seed": seed, "dtype": dtype, "onset": path.onset, "rows": rows})
        print(seed, dtype, flush=True)
    double = descent(0, "float64", 20 if quick else 400, 3, (1,))
    results["one_place"] = at_one_place(double, (1, 6), 1 if quick else 3)
    ways = [(20, 30, 10)] if quick else [(50, 200, 10), (20, 30, 50)]
    results["density"] = moments(double, 1 if quick else 3, ways)
    results["torch"] = in_torch(double, 1 if quick else 3)
    results["recording"] = recording(40 if quick else 500, 1 if quick else 5)

    text = tables(results)
    print(text)
    path = write("curvature", results, arguments.output)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    draw(results, path.with_suffix(".png"))
    print(f"\n{path} written")


def tables(results: dict[str, Any]) -> str:
    """All parts as markdown."""

    def part(title: str, rows: list[dict[str, Any]], **columns: str) -> str:
        return f"{title}\n\n" + table(list(columns.values()), ([row[key] for key in columns] for row in rows))

    errors = {"median_error": "median error", "largest_error": "largest error"}
    parts = [
        part(
            f"Followed along descent, seed {run['seed']}, {run['dtype']}, onset at step {run['onset']}:",
            run["rows"],
            k="k",
            method="method",
            phase="onset",
            hvps="HVPs a step",
            most_hvps="at most",
            **errors,
            milliseconds="ms",
        )
        for run in results["tracking"]
    ]
    one = {"k": "k", "method": "method", "hvps": "HVPs", **errors}
    parts.append(
        part(
            "At one place, to a relative residual of 1e-6:",
            results["one_place"],
            **one,
            largest_residual="largest residual",
            milliseconds="ms",
        )
    )
    torch = results["torch"]
    parts.append(part("The same in torch:", torch["rows"], **one))
    if torch["left_out"]:
        parts.append(f"Left out, because not installed: {', '.join(torch['left_out'])}.")
    parts.append(
        part(
            "Moments of the spectral density, largest error:",
            results["density"],
            method="method",
            hvps="HVPs",
            **{f"moment {p}": f"(1/P) tr H^{p}" for p in range(1, 5)},
            milliseconds="ms",
        )
    )
    parts.append("In sum:\n\n" + table(["measured", "value", "target", "met"], verdicts(results)))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
