"""What an ensemble saves: many initialisations in one call against a loop of single calls.

    python benchmarks/ensemble.py [--quick] [--output DIR]

1. The toy model of depth 3 (Gissin, Shalev-Shwartz and Daniely, arXiv:1909.12051) from random scales.
2. Matrix sensing of size 10 with three factors, 60 Gaussian measurements, and random factors.

Both as a flow and as a descent. All calls are warm and timed in turns, with 101 records and
the defaults of gflow otherwise; single calls are timed for a part of the members and scaled up. Their
results are compared with those of the ensemble. Where there are several devices, members are spread over
them as well; the cores of a CPU count as such. The file is named after the device if that is no CPU.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _report import parse, table, time_pairs, write

import gflow


def toy(key: jax.Array) -> gflow.models.Diagonal:
    """σᵢ = wᵢ³, from a random scale for each of them."""
    scale = jax.random.uniform(key, (4,), minval=np.log(1e-4), maxval=np.log(1e-1))
    return gflow.models.Diagonal(jnp.exp(scale / 3), None, 3)


def toy_loss(model: gflow.models.Diagonal, target: jax.Array) -> jax.Array:
    """(1/18) Σ (σᵢ − σᵢ*)²."""
    return jnp.sum((model.effective() - target) ** 2) / 18


def factors(key: jax.Array) -> gflow.models.Factorisation:
    """W = W₁ W₂ W₃, of size 10, at an initial scale of 1e-4."""
    return gflow.models.Factorisation.normal(10, 3, 1e-4 ** (1 / 3) / 10**0.5, key=key)


def sensing_loss(model: gflow.models.Factorisation, data: tuple[jax.Array, jax.Array]) -> jax.Array:
    """(1/6) mean (⟨Aᵢ, W⟩ − yᵢ)²."""
    measurements, y = data
    return jnp.mean((jax.vmap(model)(measurements) - y) ** 2) / 6


class Setting(NamedTuple):
    """Many members of a model, their loss and data, and one of the verbs."""

    name: str
    models: eqx.Module
    loss: Callable
    data: Any
    run: Callable[..., gflow.Trajectory]


def settings(members: int) -> list[Setting]:
    """Two systems, each as a flow and as a descent."""
    keys = jax.random.split(jax.random.key(0), members)
    measurements = jax.random.normal(jax.random.key(1), (60, 10, 10))
    target = jnp.diag(jnp.array([12.0, 6.0, 4.0, 3.0] + [0.0] * 6))
    systems = [
        ("toy model", eqx.filter_vmap(toy)(keys), toy_loss, jnp.array([12.0, 6.0, 4.0, 3.0])),
        (
            "matrix sensing",
            eqx.filter_vmap(factors)(keys),
            sensing_loss,
            (measurements, jnp.tensordot(measurements, target, 2)),
        ),
    ]

    def flow(model, data, **kwargs):
        return gflow.integrate(model, data, 40.0, **kwargs)  # when the last singular value has been learned

    def descent(model, data, **kwargs):
        return gflow.descend(model, data, 0.01, 4000, **kwargs)

    return [
        Setting(f"{name}, {verb}", models, loss, data, run)
        for name, models, loss, data in systems
        for verb, run in (("flow", flow), ("descent", descent))
    ]


def measure(setting: Setting, members: int, alone: int, repeats: int) -> dict[str, Any]:
    """Seconds of the ensemble and of `members` single calls, and how far the results are apart."""
    found: dict[int, gflow.Trajectory] = {}
    mesh = jax.make_mesh((jax.device_count(),), ("members",))
    spread = jax.device_put(setting.models, jax.NamedSharding(mesh, jax.P("members")))

    def together(models=setting.models):
        found[-1] = setting.run(models, setting.data, loss=setting.loss, ensemble=True)

    def one_by_one():
        for i in range(alone):
            model = jax.tree.map(lambda leaf, i=i: leaf[i], setting.models)
            found[i] = setting.run(model, setting.data, loss=setting.loss)

    def timed(ensemble):
        times = time_pairs(ensemble, one_by_one, repeats)
        times = [(of_all, of_some * members / alone) for of_all, of_some in times]
        medians = [float(np.median(column)) for column in zip(*times, strict=True)]
        return *medians, float(np.median([loop / one for one, loop in times]))

    of_all_devices = None
    if jax.device_count() > 1:
        seconds, _, ratio = timed(lambda: together(spread))
        of_all_devices = {"devices": jax.device_count(), "ensemble_seconds": seconds, "ratio": ratio}
    of_ensemble, of_loop, ratio = timed(together)
    ensemble = found.pop(-1)
    return {
        "setting": setting.name,
        "members": members,
        "timed_alone": alone,
        "ensemble_seconds": of_ensemble,
        "loop_seconds": of_loop,
        "ratio": ratio,
        "all_devices": of_all_devices,
        "steps": [min(ensemble.stats["steps"]), max(ensemble.stats["steps"])],
        "largest_difference_of_loss": max(
            float(np.max(np.abs(ensemble.loss[i] - run.loss))) / run.loss[0] for i, run in found.items()
        ),
    }


def main() -> None:
    """Runs everything, prints the table and writes the file."""
    arguments = parse(__doc__)
    members, alone, repeats = (20, 4, 1) if arguments.quick else (100, 20, 3)
    jax.config.update("jax_enable_x64", True)
    cores = os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", max(n for n in range(1, cores + 1) if members % n == 0))
    device = jax.default_backend()
    if device != "cpu":  # to which a single call is a long row of small programs
        alone, repeats = min(alone, 5), 1
    rows = [measure(setting, members, alone, repeats) for setting in settings(members)]
    shown = {
        "setting": "setting",
        "members": "members",
        "ensemble_seconds": "one call, seconds",
        "loop_seconds": "a loop, seconds",
        "ratio": "ratio",
        "largest_difference_of_loss": "largest difference of the loss over the first",
    }
    of_each = [[row[name] for name in shown] for row in rows]
    headings = list(shown.values())
    if rows[0]["all_devices"]:
        headings += [f"{jax.device_count()} devices, seconds", "ratio"]
        for line, row in zip(of_each, rows, strict=True):
            line += [row["all_devices"]["ensemble_seconds"], row["all_devices"]["ratio"]]
    text = table(headings, of_each)
    name = "ensemble" if device == "cpu" else f"ensemble_{device}"
    path = write(name, {"quick": arguments.quick, "rows": rows}, arguments.output)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n\n{path} written")


if __name__ == "__main__":
    main()
