"""The house rules: imports run downwards and change nothing, everything public is documented."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gflow

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gflow"

# Every room, with what it may import of gflow: "above" is all rooms higher up in this list.
CORE = {"_tree", "_errors", "_numbers", "losses", "_problem"}
ROOMS: list[tuple[set[str], set[str] | str]] = [
    ({"_tree"}, set()),  # PyTree vector algebra
    ({"_errors"}, set()),  # what errors say, in a line
    ({"_numbers"}, {"_tree"}),  # checks of the numbers among the arguments
    ({"losses"}, {"_tree"}),  # per-example losses and their mean
    ({"_problem"}, "above"),  # the surface L(θ); all checks of model, data and loss
    ({"curvature"}, "above"),  # Hessian operator, eigenpairs, spectrum
    ({"flows"}, "above"),  # vector fields, as diffrax terms
    ({"clocks"}, "above"),  # the variables in which their paths are traversed
    ({"solvers"}, "above"),  # diffrax solvers made for gradient flow
    ({"observe", "stop"}, "above"),  # what can be recorded; when to stop
    ({"_trajectory"}, {"_tree"}),  # what a run returns
    ({"stability"}, {"_tree", "_numbers", "_trajectory"}),  # thresholds of optimisers, statistics at the edge
    ({"_checkpoint"}, {"_tree", "_trajectory"}),  # a file from which a run goes on
    ({"_watch"}, "above"),  # stop conditions inside a compiled loop
    ({"_repeat", "_host"}, set()),  # one compiled call made again and again; what surrounds it
    ({"_start_check"}, "above"),  # what must hold where a run starts
    ({"_path"}, "above"),  # what the loop asks of a path
    ({"_attempt"}, {"_tree"}),  # one attempted step of a solver, for one member or all
    ({"_stepper"}, "above"),  # the loop that drives and records a path
    ({"_flow_path", "_descent_path"}, "above"),  # the two kinds of path
    ({"_switch"}, "above"),  # another solver in the midst of a run
    ({"_members"}, "above"),  # many paths at once: what differs between them
    ({"_ensemble"}, "above"),  # the loop that drives and records them
    ({"_two_phase"}, "above"),  # one run after the other
    ({"_integrate", "_descend"}, "above"),  # the two verbs
    ({"_compare"}, "above"),  # flow and descent on one clock
    ({"models", "bias", "data"}, CORE),  # the literature's models, yardsticks and data
    ({"optimizers"}, set()),  # what optax lacks
    ({"plot"}, {"_trajectory", "stability", "_compare"}),  # pictures
    ({"__init__"}, "above"),  # the public face
]


def allowed() -> dict[str, set[str]]:
    """Each room with all that it may import; modules of one room may import each other."""
    above: set[str] = set()
    result = {}
    for rooms, may_import in ROOMS:
        for room in rooms:
            result[room] = {room} | (above if may_import == "above" else set(may_import))
        above = above | rooms
    return result


def imported_rooms(source: str, package: str) -> set[str]:
    """The rooms of gflow that a module inside `package` imports, wherever in its code."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -(node.level - 1) or None] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names if name.split(".")[0] == "gflow"]
    # `from gflow import integrate` reaches into the public face, not into a room.
    return {part[1] if len(part) > 1 and part[1] in allowed() else "__init__" for part in parts}


@pytest.mark.parametrize(
    "source, package, rooms",
    [
        ("import gflow", "gflow", {"__init__"}),
        ("import gflow.losses as l", "gflow", {"losses"}),
        ("from gflow import losses, integrate", "gflow", {"losses", "__init__"}),
        ("from gflow.curvature.lanczos import x", "gflow", {"curvature"}),
        ("from . import _tree", "gflow", {"_tree"}),
        ("from ._tree import dot", "gflow", {"_tree"}),
        ("from . import lanczos", "gflow.curvature", {"curvature"}),
        ("from .. import stop", "gflow.curvature", {"stop"}),
        ("from .._problem import Problem", "gflow.curvature", {"_problem"}),
        ("def f():\n    from gflow import plot", "gflow", {"plot"}),
        ("import jax\nfrom jax import gflow", "gflow", set()),
    ],
)
def test_the_reader_of_imports(source, package, rooms):
    assert imported_rooms(source, package) == rooms


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_run_downwards(path):
    inside = path.relative_to(PACKAGE)
    room = inside.parts[0].removesuffix(".py")
    assert room in allowed(), f"{inside} belongs to no room: give it a place in ROOMS"
    package = ".".join(["gflow", *inside.parts[:-1]])
    forbidden = imported_rooms(path.read_text(), package) - allowed()[room]
    assert not forbidden, f"{inside} may not import {sorted(forbidden)}"


def test_importing_has_no_side_effects():
    code = """
import sys
import jax
before = dict(jax.config.values)
import gflow
changed = [name for name, value in jax.config.values.items() if before.get(name, value) != value]
assert not changed, f"importing gflow changed {changed}"
loaded = {"matplotlib", "mlxtend", "sklearn"} & sys.modules.keys()
assert not loaded, f"importing gflow loaded {loaded}"
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


NAMESPACES = ["gflow"] + [
    f"gflow.{module.name}"
    for module in pkgutil.iter_modules(gflow.__path__)
    if not module.name.startswith("_")
]


def public() -> dict[str, object]:
    """Every public name: namespaces, what `__all__` lists there, and the methods of its classes."""
    names: dict[str, object] = {}
    for namespace in NAMESPACES:
        module = importlib.import_module(namespace)
        names[namespace] = module
        for name in module.__all__:
            value = getattr(module, name)
            names[f"{namespace}.{name}"] = value
            if inspect.isclass(value):
                for member, attribute in vars(value).items():
                    function = inspect.unwrap(getattr(attribute, "fget", None) or attribute)
                    if inspect.isfunction(function) and not member.startswith("_"):
                        names[f"{namespace}.{name}.{member}"] = function
    return names


@pytest.mark.parametrize("name, value", public().items(), ids=list(public()))
def test_every_public_name_has_a_docstring(name, value):
    text = (value.__doc__ or "").strip()
    # A dataclass without a docstring is given its own signature as one.
    automatic = inspect.isclass(value) and text.startswith(f"{value.__name__}(")
    assert text and not automatic, f"{name} has no docstring"


def entries() -> dict[str, set[str] | None]:
    """The `::: name` entries of the reference; with its list of members if it gives one."""
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    result: dict[str, set[str] | None] = {}
    for name, options in re.findall(r"^::: *(\S+)\n((?:[ \t]+\S.*\n|\n)*)", text + "\n", re.M):
        listed = re.search(r"members:((?:\s+- \w+)+)", options)
        result[name] = set(re.findall(r"- (\w+)", listed[1])) if listed else None
        if "members: false" in options:
            result[name] = set()
    return result


def test_the_reference_is_complete_and_has_nothing_else():
    reference = entries()

    def covered(name: str) -> bool:
        parent, _, last = name.rpartition(".")
        if name in reference or name == "gflow":
            return True
        if parent in reference:
            return reference[parent] is None or last in reference[parent]
        return parent not in NAMESPACES and covered(parent)

    names = public()
    assert not (missing := [name for name in names if not covered(name)]), f"undocumented: {missing}"
    assert not (stale := reference.keys() - names.keys()), f"documented but not public: {stale}"


def test_no_file_speaks_of_the_machine_it_was_written_on():
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        files = subprocess.run(listing, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    place = re.compile(r"(?<![\w.:/-])/(?:tmp|work|root|home|opt|Users)\b|[.]library\b")
    found = []
    for file in filter(None, files.split("\0")):
        path = ROOT / file
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (
            UnicodeDecodeError,
            FileNotFoundError,
        ):  # a picture; a file deleted but still listed
            continue
        found += [f"{file}:{i}: {line}" for i, line in enumerate(lines, 1) if place.search(line)]
    assert not found, "\n".join(found)
