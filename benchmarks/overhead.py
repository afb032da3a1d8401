"""What gflow costs on top of the libraries it is built on, and what its memory bound is worth.

    python benchmarks/overhead.py [--quick] [--output DIR]

1. `gflow.integrate` against a hand-written `diffrax.diffeqsolve` of the same solver, controller and
   tolerances on the digits: steps, parameters at the end, warm wall time and compile time.
2. `gflow.descend` against hand-written jitted loops over optax on a small network, and against a bare
   `lax.scan` of the same step, which keeps no records and checks nothing.
3. Temporary memory of gradient and Hessian-vector product with and without `chunk_size`, as XLA
   plans it.
4. The time from nothing to the picture of examples/flow_vs_gd.py, in a fresh process.

Times are medians over pairs that were timed in alternation, compile times of fresh processes.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from _networks import digits, digits_1000, mnist, network
from _report import fresh_seconds, median_ratio, parse, seconds, table, time_pairs, write

import gflow

RTOL, ATOL, FIRST_STEP = 1e-4, 1e-7, 0.01
HORIZON = 75.0
EXAMPLE = Path(__file__).parents[1] / "examples" / "flow_vs_gd.py"


def by_gflow(records: int) -> Callable[[float], gflow.Trajectory]:
    """A function of the horizon: gradient flow by gflow, recorded so many times."""
    model, x, y = digits_1000()
    data = (x, jax.nn.one_hot(y, 10))
    solver = diffrax.Tsit5()
    return lambda t_max: gflow.integrate(
        model, data, t_max, solver=solver, rtol=RTOL, atol=ATOL, dt0=FIRST_STEP, save_at=records
    )


def by_diffrax(records: int) -> Callable[[float], diffrax.Solution]:
    """The same flow by hand: only the end for two records, otherwise loss and gradient norm."""
    model, x, y = digits_1000()
    data = (x, jax.nn.one_hot(y, 10))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, data):
        x, y = data
        outputs = jax.vmap(eqx.combine(params, static))(x)
        return 0.5 * jnp.mean(jnp.sum((outputs - y) ** 2, axis=-1))

    def field(t, params, data):
        del t
        return jtu.tree_map(jnp.negative, jax.grad(loss)(params, data))

    def record(t, params, data):
        del t
        value, gradient = jax.value_and_grad(loss)(params, data)
        return value, optax.tree.norm(gradient)

    @jax.jit
    def solve(params, data, times):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            times[0],
            times[-1],
            FIRST_STEP,
            params,
            args=data,
            saveat=diffrax.SaveAt(t1=True) if records == 2 else diffrax.SaveAt(ts=times, fn=record),
            stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
        )

    return lambda t_max: solve(params, data, jnp.linspace(0, t_max, records))


RIVALS = {
    "reads_each_loss": "loop that reads each loss",
    "reads_each_loss_with_equinox": "loop with eqx.filter_jit that reads each loss",
    "reads_none": "loop that reads no loss",
    "scan": "bare lax.scan",
}
OPTIMIZERS = {
    "gradient descent": (optax.sgd(0.1), tuple(RIVALS)),
    "momentum": (optax.sgd(0.1, momentum=0.9), ("reads_each_loss", "scan")),
    "Adam": (optax.adam(1e-3), ("reads_each_loss", "scan")),
    "RMSProp": (optax.rmsprop(1e-3), ("reads_each_loss", "scan")),
}
WAYS = {"gflow": by_gflow, "diffrax": by_diffrax}


def first_call(way: str, records: int) -> None:
    """Prints the seconds that the first call takes longer than the second; for a fresh process."""
    run = WAYS[way](records)
    short = lambda: run(0.1)  # the horizon is not compiled in, and a short run adds no noise
    print(seconds(short) - seconds(short))


def against_diffrax(records: int, repeats: int, processes: int) -> dict[str, Any]:
    """Steps, agreement and times of both ways."""
    ours, theirs = by_gflow(records), by_diffrax(records)
    flow, solution = ours(HORIZON), theirs(HORIZON)
    assert solution.ys is not None
    if records == 2:
        mine = jtu.tree_leaves(eqx.filter(flow.model, eqx.is_inexact_array))
        other = [leaf[-1] for leaf in jtu.tree_leaves(solution.ys)]
    else:
        mine, other = [flow.loss, flow.gradient_norm], jtu.tree_leaves(solution.ys)
    difference = max(float(np.max(np.abs(a - b))) for a, b in zip(mine, other, strict=True))
    warm = time_pairs(lambda: ours(HORIZON), lambda: theirs(HORIZON), repeats)
    cold = []
    for i in range(processes):
        order = list(WAYS) if i % 2 == 0 else list(WAYS)[::-1]
        taken = {way: fresh_seconds(__file__, "--first-call", way, str(records)) for way in order}
        cold.append((taken["gflow"], taken["diffrax"]))
    return {
        "t_max": HORIZON,
        "records": records,
        "steps": [flow.stats["steps"], int(solution.stats["num_steps"])],
        "compared": "final parameters" if records == 2 else "recorded loss and gradient norm",
        "largest_difference": difference,
        "warm_seconds": warm,
        "warm_ratio": median_ratio(warm),
        "compile_seconds": cold,
        "compile_ratio": median_ratio(cold),
    }


def against_optax(name: str, steps: int, repeats: int, dtype: str) -> dict[str, Any]:
    """Steps per second of `descend` and of its rivals.

    One loop jits with `jax.jit`, on parameters taken out of the model beforehand; the one of Equinox's
    documentation hands the model to `eqx.filter_jit`.
    """
    optimizer, against = OPTIMIZERS[name]
    cast = lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf
    model, data = jtu.tree_map(cast, (network((64, 7, 7, 10)), digits(50)))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, data):
        x, y = data
        outputs = jax.vmap(eqx.combine(params, static))(x)
        return 0.5 * jnp.mean(jnp.sum((outputs - y) ** 2, axis=-1))

    @jax.jit
    def step(params, state, data):
        value, gradient = jax.value_and_grad(loss)(params, data)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    @eqx.filter_jit
    def step_of_equinox(model, state, data):
        loss_of = lambda model, data: loss(eqx.filter(model, eqx.is_inexact_array), data)
        value, gradient = eqx.filter_value_and_grad(loss_of)(model, data)
        updates, state = optimizer.update(gradient, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, value

    @jax.jit
    def scan(params, data):
        def body(carry, _):
            params, state, value = step(*carry, data)
            return (params, state), value

        return jax.lax.scan(body, (params, optimizer.init(params)), None, length=steps)

    def loop(step: Callable, now: Any, read: bool):
        state = optimizer.init(params)
        losses = []
        for _ in range(steps):
            now, state, value = step(now, state, data)
            losses.append(float(value) if read else value)
        return now, losses[-1]

    ours = lambda: gflow.descend(model, data, optimizer, steps)
    mine = jtu.tree_leaves(eqx.filter(ours().model, eqx.is_inexact_array))
    other = jtu.tree_leaves(loop(step, params, True)[0])
    result = {
        "optimizer": name,
        "parameters": sum(leaf.size for leaf in mine),
        "dtype": dtype,
        "steps": steps,
        "largest_difference": max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(mine, other, strict=True)),
    }
    rivals = {
        "reads_each_loss": lambda: loop(step, params, True),
        "reads_each_loss_with_equinox": lambda: loop(step_of_equinox, model, True),
        "reads_none": lambda: loop(step, params, False),
        "scan": lambda: scan(params, data),
    }
    for rival in against:
        pairs = time_pairs(rivals[rival], ours, repeats)
        result[rival] = {
            "seconds": pairs,
            "steps_per_second": [steps / median(of) for of in zip(*pairs, strict=True)],
            "speedup": median_ratio(pairs),
        }
    return result


def memory(counts: tuple[int, ...], chunks: tuple[int, ...]) -> list[dict[str, Any]]:
    """Temporary bytes of gradient and HVP on MNIST, and how far chunks change the values."""
    model = network((784, 40, 40, 10))
    rows = []
    for n in counts:
        data = mnist(n)
        whole: dict[str, np.ndarray] = {}
        for chunk in (None, *chunks):
            problem = gflow.Problem(model, data, chunk_size=chunk)
            direction = jtu.tree_map(jnp.ones_like, problem.params)
            row: dict[str, Any] = {"examples": n, "chunk_size": chunk}
            for name, function in (
                ("value_and_gradient", lambda problem, v: problem.value_and_gradient(v)),
                ("hvp", lambda problem, v: problem.hvp(problem.params, v)),
            ):
                at = problem.params if name == "value_and_gradient" else direction
                dynamic, static = eqx.partition(problem, eqx.is_array)
                compiled = (
                    jax.jit(
                        lambda dynamic, v, static=static, function=function: function(
                            eqx.combine(dynamic, static), v
                        )
                    )
                    .lower(dynamic, at)
                    .compile()
                )
                planned = compiled.memory_analysis()
                assert planned is not None
                leaves = jtu.tree_leaves(compiled(dynamic, at))
                value = np.concatenate([np.ravel(leaf) for leaf in leaves])
                whole.setdefault(name, value)
                apart = np.linalg.norm(value - whole[name]) / np.linalg.norm(whole[name])
                row |= {
                    f"{name}_bytes": planned.temp_size_in_bytes,
                    f"{name}_difference": float(apart),
                }
            rows.append(row)
    return rows


def first_picture(quick: bool) -> float:
    """Seconds from the start of Python to the picture of the example."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        command = [sys.executable, str(EXAMPLE), "--output", str(picture)]
        run = lambda: subprocess.run(
            command + ["--quick"] * quick,
            env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "MPLBACKEND": "agg"},
            capture_output=True,
            check=True,
        )
        taken = seconds(run)
        if not picture.exists():
            raise RuntimeError("the example drew no picture")
    return taken


def verdicts(results: dict[str, Any]) -> list[list[Any]]:
    """Rows of what was measured, the value, its target, and whether it was met."""
    rows: list[list[Any]] = []

    def judge(what: str, value: Any, target: str = "", met: bool | None = None) -> None:
        rows.append([what, value, target, met])

    for run in results["integrate"]:
        where = f"integrate / diffeqsolve, {run['records']} records: "
        mine, other = run["steps"]
        judge(where + "steps", f"{mine} / {other}", "equal", mine == other)
        # a different order of summation, carried along the path
        judge(where + f"difference of {run['compared']}", run["largest_difference"])
        judge(where + "warm time", run["warm_ratio"], "≤ 1.15", run["warm_ratio"] <= 1.15)
        judge(where + "compile time", run["compile_ratio"], "≤ 1.3", run["compile_ratio"] <= 1.3)

    for run in results["descend"]:
        where = f"{run['optimizer']}, {run['dtype']}: "
        for rival, words in RIVALS.items():
            if rival not in run:
                continue
            other, mine = run[rival]["steps_per_second"]
            judge(f"{where}steps per second of descend / {words}", f"{mine:.0f} / {other:.0f}")
            speedup = run[rival]["speedup"]
            goal = ("≥ 5", speedup >= 5) if rival.startswith("reads_each_loss") else ("", None)
            judge(f"{where}speed of descend / that of the {words}", speedup, *goal)
        judge(f"{where}difference of final parameters", run["largest_difference"])

    for name in ("value_and_gradient", "hvp"):
        of: dict[int | None, list[dict[str, Any]]] = {}
        for row in results["memory"]:
            of.setdefault(row["chunk_size"], []).append(row)
        for chunk, found in of.items():
            small, large = found[0], found[-1]
            growth = large[f"{name}_bytes"] / small[f"{name}_bytes"]
            span = f"{large['examples']} / {small['examples']} examples"
            goal = ("", None) if chunk is None else ("≤ 1.2", growth <= 1.2)
            judge(f"{name}, chunk_size={chunk}: memory at {span}", growth, *goal)
            if chunk is not None:
                share = large[f"{name}_bytes"] / of[None][-1][f"{name}_bytes"]
                judge(f"{name}, chunk_size={chunk}: memory / that without chunks", share)
        worst = max(row[f"{name}_difference"] for row in results["memory"])
        judge(f"{name}: relative difference by chunks", worst, "≤ 1e-12", worst <= 1e-12)

    picture = results["first_picture_seconds"]
    judge("start of Python to the picture of the example, s", picture, "< 60", picture < 60)
    return rows


def main() -> None:
    """Runs everything, prints the tables and writes the files."""
    if sys.argv[1:2] == ["--first-call"]:
        jax.config.update("jax_enable_x64", True)
        first_call(sys.argv[2], int(sys.argv[3]))
        return
    arguments = parse(__doc__)
    quick = arguments.quick
    jax.config.update("jax_enable_x64", True)

    results: dict[str, Any] = {"quick": quick}
    results["integrate"] = [
        against_diffrax(records, repeats=3 if quick else 9, processes=1 if quick else 5)
        for records in ((101,) if quick else (2, 101))
    ]
    results["descend"] = [
        against_optax(name, 5000 if quick else 50000, repeats=2 if quick else 3, dtype=dtype)
        for name in (list(OPTIMIZERS)[:1] if quick else OPTIMIZERS)
        for dtype in (("float32",) if quick else ("float32", "float64"))
    ]
    results["memory"] = memory((300, 600), (150,)) if quick else memory((500, 1000, 2000, 5000), (250, 300))
    results["first_picture_seconds"] = first_picture(quick)

    print(table(["measured", "value", "target", "met"], verdicts(results)))
    print()
    columns = list(results["memory"][0])
    print(table(columns, (list(row.values()) for row in results["memory"])))
    print(f"\n{write('overhead', results, arguments.output)} written")


if __name__ == "__main__":
    main()
