"""The tests and the main job on the device that JAX takes by default, and on the CPU beside it.

    python benchmarks/devices.py [--quick] [--output DIR] [--processes N] [--seconds S]

1. The tests that are not slow, in processes that share the device, for at most S seconds.
2. The main job (`gflow.compare` of the flow with descent at η = 0.4 on 300 digits, 500 steps, with the
   sharpness of both at every step) in float32 and float64.
3. A network of 199 210 parameters on 5000 digits of MNIST in float32: flow, descent and sharpness.

The results are kept beside those of other devices that were written before.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _networks import digits, mnist, network
from _report import circumstances, parser, seconds, stored, table, write

import gflow

ROOT = Path(__file__).resolve().parents[1]


def tests(quick: bool, processes: int, limit: float) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, which failed, and their wall time."""
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.xml", Path(folder) / "log"
        chosen = ["tests/test_data.py"] if quick else ["-m", "not slow"]
        command = [sys.executable, "-m", "pytest", *chosen, "-q", "--junit-xml", str(report)]
        command += ["-n", str(processes), "--dist", "worksteal"] if processes > 1 else []
        # Processes that share a device can't each take most of its memory, as JAX does by default, and
        # programs are to be compiled as users' are.
        shared = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        shared["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "")
        with log.open("w") as output, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, cwd=ROOT, env=shared, stdout=output, stderr=output, timeout=limit)
        if not report.exists():
            print(log.read_text()[-3000:])
            raise RuntimeError(f"the tests ended without a report, or took more than {limit:g} s")
        suite = next(ElementTree.parse(report).iter("testsuite"))
        bad = {"failure", "error"}
        broken = [case for case in suite.iter("testcase") if bad & {part.tag for part in case}]
        for case in broken:
            print(case.attrib["classname"], case.attrib["name"])
            print("\n".join((part.text or "")[-1500:] for part in case if part.tag in bad))
        count = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        failed = count["failures"] + count["errors"]
        return {
            "passed": count["tests"] - failed - count["skipped"],
            "failed": failed,
            "skipped": count["skipped"],
            "names": [f"{case.attrib['classname']}.{case.attrib['name']}" for case in broken],
            "seconds": float(suite.attrib["time"]),
        }


def twice(job: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of a job, and the seconds of its first call, which compiles, and of its second."""
    results: list[Any] = []
    times = [seconds(lambda: results.append(job())) for _ in range(2)]
    return results[-1], times[0], times[1]


def main_job(x64: bool, steps: int) -> dict[str, Any]:
    """Flow and descent on the digits, at the edge of stability."""
    jax.config.update("jax_enable_x64", x64)
    model, data = network((64, 24, 24, 10)), digits(300)
    both, first, warm = twice(lambda: gflow.compare(model, data, learning_rate=0.4, t_max=0.4 * steps))
    edge, flow = both.edge, both.flow.stats
    early = (both.step >= steps // 10) & (both.step < (steps if edge.onset is None else edge.onset))
    return {
        "first_seconds": first,
        "seconds": warm,
        "crossing": edge.crossing,
        "onset": edge.onset,
        "ratio_after_onset": edge.mean,
        "distance_before_onset": float(np.max(both.distance[early])),
        "flow_gradients": flow["gradients"] - flow["record_gradients"],
    }


def large(quick: bool) -> dict[str, Any]:
    """Seconds of flow, descent and sharpness where a gradient is dear, and their results."""
    jax.config.update("jax_enable_x64", False)
    model, data = network((784, 20, 20, 10) if quick else (784, 200, 200, 10)), mnist(5000)
    t_max, rate = 1.0 if quick else 4.0, 0.1
    steps = round(t_max / rate)
    flow, _, of_flow = twice(lambda: gflow.integrate(model, data, t_max, save_at=[0, t_max]))
    descent, _, of_descent = twice(lambda: gflow.descend(model, data, rate, steps, save_every=steps))
    top, _, of_sharpness = twice(lambda: gflow.sharpness(model, data))
    return {
        "parameters": gflow.Problem(model, data).size,
        "flow": {"seconds": of_flow, "loss": flow.loss[-1], "gradients": flow.stats["gradients"]},
        "descent": {"seconds": of_descent, "loss": descent.loss[-1], "steps": descent.stats["steps"]},
        "sharpness": {"seconds": of_sharpness, "value": top.value, "hvps": top.hvps},
    }


def jobs(quick: bool) -> dict[str, Any]:
    """The two jobs on the device that is now the default one."""
    kinds, steps = (("float32",), 50) if quick else (("float32", "float64"), 500)
    main = {kind: main_job(kind == "float64", steps) for kind in kinds}
    return {"main job": main, "large": large(quick)}


def describe(results: dict[str, Any]) -> str:
    """The tables of the documentation: the tests, the main job, and the large network."""
    suites, mains, larges, size = [], [], [], 0
    for name, result in results.items():
        ran = result["tests"]
        where = f"{name}, {result['machine']['cores']} cores, jax {result['versions']['jax']}"
        suites.append([where, ran["passed"], ran["failed"], ran["seconds"]])
        for device, done in result["jobs"].items():
            here = name if device == name else f"the CPU beside {name}"
            mains += [[here, kind, *row.values()] for kind, row in done["main job"].items()]
            parts = done["large"]
            size = parts["parameters"]
            larges.append([here, *(parts[part]["seconds"] for part in ("flow", "descent", "sharpness"))])
    return "\n\n".join(
        [
            table(["tests on", "passed", "failed", "seconds"], suites),
            table(
                [
                    "main job on",
                    "in",
                    "first call, s",
                    "second call, s",
                    "crossing",
                    "onset",
                    "mean λη/2 after onset",
                    "largest distance from the flow before the onset, start left out",
                    "gradients of the flow",
                ],
                mains,
            ),
            table([f"{size} parameters on", "flow, s", "descent, s", "sharpness, s"], larges),
        ]
    )


def main() -> bool:
    """Runs everything, prints the tables and writes the files; whether a test failed."""
    options = parser(__doc__)
    options.add_argument("--processes", type=int, default=1, help="that run the tests")
    options.add_argument("--seconds", type=float, default=3600, help="limit of the tests")
    arguments = options.parse_args()

    # First the tests: this process takes memory of the device only afterwards.
    ran = tests(arguments.quick, arguments.processes, arguments.seconds)
    results = {} if arguments.quick else stored("devices", arguments.output)
    here, done = jax.devices()[0], {}
    for device in [here] if here.platform == "cpu" else [here, jax.devices("cpu")[0]]:
        with jax.default_device(device):
            done[device.device_kind] = jobs(arguments.quick)
        results[here.device_kind] = {"tests": ran, "jobs": done} | circumstances()
        path = write("devices", results, arguments.output)
        path.with_suffix(".md").write_text(describe(results) + "\n", encoding="utf-8")
        print(f"{describe(results)}\n\n{path} and {path.with_suffix('.md').name} written", flush=True)
    return ran["failed"] > 0


if __name__ == "__main__":
    sys.exit(main())
