"""What the benchmarks share: their command line, timing in pairs, tables, and results on disk."""

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("jax", "jaxlib", "diffrax", "equinox", "optax", "numpy", "scipy", "torch", "torchdiffeq")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The command line of a benchmark with that docstring: `quick` and `output`."""
    options = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    options.add_argument("--quick", action="store_true", help="smaller, to see that it works")
    options.add_argument("--output", type=Path, default=RESULTS, help="folder to write to")
    return options


def parse(doc: str | None) -> argparse.Namespace:
    """The arguments of a benchmark that takes no others."""
    return parser(doc).parse_args()


def write(name: str, results: Mapping[str, Any], output: str | os.PathLike = RESULTS) -> Path:
    """Writes `<output>/<name>.json`: the results, and where and with what they were obtained.

    Arrays become lists, and numbers that are not finite become null.
    """
    path = Path(output) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, **environment(), "results": _plain(results)}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def stored(name: str, output: str | os.PathLike = RESULTS) -> dict[str, Any]:
    """The results in `<output>/<name>.json`, empty if there is none."""
    path = Path(output) / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}


def environment() -> dict[str, Any]:
    """Machine, versions, settings, date and command."""
    return {
        "command": _command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "cores": _cores(),
            "memory_gib": round(_memory() / 2**30, 1),
            "accelerator": _accelerator(),
        },
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES}
        | {"gflow": _version("gflow-jax")},
        "backend": jax.default_backend(),
        "x64": bool(jax.config.read("jax_enable_x64")),
    }


def circumstances() -> dict[str, Any]:
    """Date, machine and versions, of a part of a file whose parts were measured apart."""
    return {key: environment()[key] for key in ("date", "machine", "versions")}


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A markdown table that is aligned as plain text, too."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def time_pairs(
    a: Callable[[], Any], b: Callable[[], Any], repeats: int, *, warm: bool = False
) -> list[tuple[float, float]]:
    """Seconds of (a, b), timed one right after the other and in turns first, when both are warm."""
    if not warm:
        seconds(a)
        seconds(b)
    pairs = []
    for i in range(repeats):
        if i % 2 == 0:
            of_a, of_b = seconds(a), seconds(b)
        else:
            of_b, of_a = seconds(b), seconds(a)
        pairs.append((of_a, of_b))
    return pairs


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Median of a/b over pairs: a change of the machine's load between pairs cancels."""
    return median(a / b for a, b in pairs)


def paired_ratio(a: Callable[[], Any], b: Callable[[], Any], repeats: int) -> float:
    """How many times longer `a` takes than `b`: the median over pairs timed in alternation."""
    return median_ratio(time_pairs(a, b, repeats))


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call, until its result is there."""
    began = perf_counter()
    jax.block_until_ready(function())
    return perf_counter() - began


def fresh_seconds(script: str, *arguments: str) -> float:
    """The seconds that a script prints, run in a fresh process that finds nothing compiled."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
    return float(done.stdout)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _command() -> str:
    """What was called, but for where its results go, which is a matter of the machine."""
    options = list(sys.argv[1:])
    if "--output" in options:
        at = options.index("--output")
        del options[at : at + 2]
    return shlex.join(["python", _script(), *options])


def _script() -> str:
    """The script that runs, as it is called from the root of the repository."""
    path = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parents[1]
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    """Bytes of physical memory, 0 where the system doesn't say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _accelerator() -> str | None:
    devices = [device for device in jax.devices() if device.platform != "cpu"]
    return f"{len(devices)} x {devices[0].device_kind}" if devices else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its sources
        return None
