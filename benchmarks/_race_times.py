"""Wall time of the default solver beside that of its rivals, and its compile time."""

from collections.abc import Callable, Mapping
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from _bars import Rows, of
from _race import DEFAULT, EXPLICIT, RK4, TORCH
from _reference import flow
from _report import fresh_seconds, seconds, time_pairs
from _rivals import by_torchdiffeq, march, torchdiffeq
from _stiff import Stiff, digits_network

import gflow

WALL = {"P1, T=75": 5, "P4, T=40": 1}  # how often each is timed

Run = Callable[[float], Any]  # of the horizon


def wall(case: Stiff, rows: Rows) -> dict[str, Any]:
    """Seconds of (default, rival), each at its cheapest tolerance of the race with an error ≤ 1e-3."""
    ours, error = _chosen(rows, DEFAULT)
    found = {}
    beside = torchdiffeq and jax.default_backend() == "cpu"  # where torch runs
    for rival in (*EXPLICIT, RK4, *([TORCH] if beside else [])):
        if not of(rows, rival):  # left out of the race
            continue
        theirs, other = _chosen(rows, rival)
        pair = _run(case, DEFAULT, ours), _run(case, rival, theirs)
        for run in pair:
            run(case.horizon / 100)  # compiles, because the horizon is not compiled in
        a, b = (lambda run=run: run(case.horizon) for run in pair)
        timed = time_pairs(a, b, WALL[case.name], warm=True)
        found[rival] = {"rtol": [ours, theirs], "errors": [error, other], "seconds": timed}
        print(f"  {case.name}, {rival}: {timed}", flush=True)
    return found


def _chosen(rows: Rows, method: str) -> tuple[float, float | None]:
    """Tolerance and error of the cheapest run with an error ≤ 1e-3, else of the most accurate one."""
    runs = of(rows, method)
    good = [row for row in runs if row["error"] is not None and row["error"] <= 1e-3]
    accuracy = lambda row: jnp.inf if row["error"] is None else row["error"]
    row = min(good, key=lambda row: row["cost"]) if good else min(runs, key=accuracy)
    return row["rtol"], row["error"]


def _run(case: Stiff, method: str, rtol: float) -> Run:
    problem = case.problem
    if method == TORCH:
        return lambda t_max: by_torchdiffeq(problem, t_max, rtol)
    if method == RK4:
        return lambda t_max: march(problem, t_max, 1.0, 4, 10**9, 1)
    solver = EXPLICIT.get(method)
    return lambda t_max: flow(case, t_max=t_max, solver=solver, rtol=rtol, atol=0.1 * rtol)


def by_default(case: Stiff) -> Run:
    """`gflow.integrate` with nothing named."""
    problem = case.problem
    model = problem.model(problem.params)
    return lambda t_max: gflow.integrate(model, problem.data, t_max, loss=problem.loss, save_at=2)


def by_diffeqsolve(case: Stiff) -> Run:
    """The same by hand, with diffrax's Tsit5."""
    problem = case.problem

    def field(t, params, args):
        del t, args
        return jtu.tree_map(jnp.negative, problem.gradient(params))

    @jax.jit
    def solve(params, t_max):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            0.0,
            t_max,
            0.01,
            params,
            saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-7),
        ).ys

    return lambda t_max: solve(problem.params, t_max)


WAYS = {"default": by_default, "diffeqsolve": by_diffeqsolve}


def first_call(way: str) -> float:
    """The seconds that the first call takes longer than the second, on P1."""
    run = WAYS[way](digits_network(75.0, gflow.losses.Squared(), "P1"))
    short = lambda: run(0.1)  # a short run adds no noise
    return seconds(short) - seconds(short)


def compile_pairs(script: str, processes: int) -> list[tuple[float, float]]:
    """Compile times of (default, diffeqsolve), each in a fresh process of `script`, in alternation."""
    pairs = []
    for i in range(processes):
        order = list(WAYS) if i % 2 == 0 else list(WAYS)[::-1]
        taken: Mapping[str, float] = {way: fresh_seconds(script, "--first-call", way) for way in order}
        pairs.append((taken["default"], taken["diffeqsolve"]))
        print(f"  compile time, default and diffeqsolve: {pairs[-1]}", flush=True)
    return pairs
