"""What both verbs return: the records along a path, the final model, and how the run went."""

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, KeysView, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped

from gflow import _tree

_FORMAT = 1
# What NumPy, zip and JSON raise when they meet a file of another kind, or half of one.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError)


class Trajectory(eqx.Module):
    """A path through parameter space: what was recorded along it, where it ended, and how.

    **Attributes:**

    - `t`: flow times of the records, shape (records,). For a descent t = learning_rate · step. In a clock
        that outruns floats it is infinite where `log_t` is not.
    - `s`: the variable of the run's clock at each record, in which horizon and save times are given; equal to
        `t` in plain time.
    - `log_t`: log t at each record, −∞ at t = 0.
    - `records`: dictionary from names to arrays with one row per record; `trajectory["name"]` looks up
        there, and `dict(trajectory)` is a copy. `loss` and `gradient_norm` are always recorded, and
        `log_loss` in a clock in which the loss may underflow.
    - `model`: the model at the last record.
    - `models`: the model at every record, trainable leaves stacked along a leading axis; `None` unless
        the run was asked for `save_models=True`. `model_at` picks one.
    - `step`: of a descent, the step number k of each record; `None` for a flow.
    - `switch`: the index of the record at which a run in two phases changed its clock, `None` for others.
    - `step_loss`: of a descent, the loss at every step k = 0, 1, …, on that step's batch; `None` for a
        flow.
    - `status`: "success" (the horizon was reached), "stopped" (a stop condition held), or what went
        wrong: "max_steps", "nonfinite", "diverged", "step_underflow", "solver_failure", "clock_failure"
        (the flow has no way on in this clock), "error" (an evaluation raised an exception), "interrupted".
    - `reason`: one sentence that explains the status.
    - `warnings`: sentences on what may make the result untrustworthy.
    - `stats`: `solver`, `solver_reason` (why it was chosen), `steps` (attempted), `rejected`,
        `gradients` and `hvps` (all that were evaluated, those of the records included),
        `record_gradients` and `record_hvps` (the part spent on records and stop conditions),
        `radius_gradients` (of a flow: the part that a stabilised solver spent on the spectral radius),
        `seconds` (wall time of the call) and `compile_seconds` (the part spent on tracing and compiling).
        `gradients` is `None` where a solver doesn't tell how many it used.

    **Of an ensemble** (`ensemble=True`) all that differs between members has a leading axis: records have
    shape (members, records, ...), NaN at times that a member had ended before; `model` has the axis as it
    came, `models` has shapes (members, records, ...), `step_loss` (members, steps), and the counts in
    `stats` are lists of what each member needed. `s` is shared, and so is `t` in plain time. `status` is
    "success" if all members reached the horizon, "stopped" if some were stopped, and otherwise that of the
    first member that failed.

    - `statuses`, `reasons`: status and reason of each member; `None` for a single run.
    - `end`: dictionary of the records at the end of each member, wherever that was, shapes (members, ...);
        `end["t"]` is when. `None` for a single run.
    """

    t: Float[np.ndarray, "*clocks records"]
    s: Float[np.ndarray, " records"]
    log_t: Float[np.ndarray, "*clocks records"]
    records: dict[str, Shaped[np.ndarray, "records ..."] | Shaped[np.ndarray, "members records ..."]]
    model: PyTree
    models: PyTree | None
    step: Int[np.ndarray, " records"] | None
    step_loss: Float[np.ndarray, "*members steps"] | None
    status: str = eqx.field(static=True)
    reason: str = eqx.field(static=True)
    warnings: tuple[str, ...] = eqx.field(static=True)
    stats: dict[str, Any] = eqx.field(static=True)
    statuses: tuple[str, ...] | None = eqx.field(static=True, default=None)
    reasons: tuple[str, ...] | None = eqx.field(static=True, default=None)
    end: dict[str, Shaped[np.ndarray, "members ..."]] | None = None
    switch: int | None = eqx.field(static=True, default=None)

    @property
    def loss(self) -> Float[np.ndarray, "*members records"]:
        """L(θ) at each record."""
        return self.records["loss"]

    @property
    def gradient_norm(self) -> Float[np.ndarray, "*members records"]:
        """‖∇L(θ)‖₂ at each record."""
        return self.records["gradient_norm"]

    @property
    def ok(self) -> bool:
        """True if the run reached its horizon or a stop condition."""
        return self.status in ("success", "stopped")

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "records ..."]:
        """The records of `name`; `KeyError` names what there is."""
        try:
            return self.records[name]
        except KeyError:
            raise KeyError(
                f"{name!r} was not recorded; this trajectory has {', '.join(self.records)}. Ask for it "
                "with observe= when the run is made."
            ) from None

    def model_at(self, record: int) -> PyTree:
        """The model at one record, of a run with `save_models=True`; of an ensemble, those of all members.

        **Raises:** `ValueError` if no models were saved or `record` is no integer, `IndexError` for a record
        that there isn't.
        """
        if self.models is None:
            raise ValueError("model_at needs save_models=True, given when the run is made.")
        if isinstance(record, bool) or not isinstance(record, (int, np.integer)):
            raise ValueError(f"record must be an integer, but {record!r} came; give the number of a record.")
        if not -len(self.s) <= record < len(self.s):
            raise IndexError(f"record must be one of {len(self.s)}, but {record} came.")
        of = (lambda many: many[record]) if self.statuses is None else (lambda many: many[:, record])

        def pick(many, one):  # frozen leaves are there once
            return of(many) if np.ndim(many) > np.ndim(one) else many

        return jtu.tree_map(lambda a, b: pick(a, b) if eqx.is_array(a) else a, self.models, self.model)

    def __contains__(self, name: object) -> bool:
        """Whether `name` was recorded."""
        return name in self.records

    def __iter__(self) -> Iterator[str]:
        """The names of the records, so that `dict(trajectory)` holds them all."""
        return iter(self.records)

    def keys(self) -> KeysView[str]:
        """The names of the records."""
        return self.records.keys()

    def __repr__(self) -> str:
        members = "" if self.statuses is None else f" of {len(self.statuses)} members"
        lines = [f"Trajectory{members}: {self.status}: {self.reason}"]
        if len(self.s):
            clocks = {"t": self.t}
            if not np.array_equal(self.s, self.t):
                clocks = {"s": self.s, "log t": self.log_t}
            for name, values in clocks.items():
                lines.append(f"  {name:<9} {_span(values[..., 0])} → {_span(values[..., -1])}")
            lines[1] += f", {len(self.s)} records"
        for name, values in self.records.items():
            if not values.size:
                continue
            last = values[..., -1] if self.end is None else self.end[name]
            if values.ndim == 1 + bool(members):
                lines.append(f"  {name:<9} {_span(values[..., 0])} → {_span(last)}")
            else:
                lines.append(f"  {name:<9} {values.dtype} array of shape {values.shape}")
        stats = ", ".join(
            f"{key} {value:.3g}"
            if isinstance(value, float)
            else f"{key} {_span(value) if isinstance(value, list) else value}"
            for key, value in self.stats.items()
            if key != "solver_reason"
        )
        lines.append(f"  stats     {stats}")
        lines += [f"  warning   {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike) -> None:
        """Writes everything to one file, from which [`gflow.load`][] reads it back.

        The file is a NumPy `.npz` archive with a JSON header of shapes, dtypes and versions. It is
        written beside `path` and moved there when complete, so that a crash leaves no half of it.
        """
        arrays = {f"records/{name}": values for name, values in self.records.items()}
        arrays |= {"t": self.t, "log_t": self.log_t, "s": self.s}
        for name, array in (("step", self.step), ("step_loss", self.step_loss)):
            if array is not None:
                arrays[name] = array
        arrays |= _named_arrays("model", self.model)
        if self.models is not None:
            arrays |= _named_arrays("models", self.models)
        if self.end is not None:
            arrays |= {f"end/{name}": values for name, values in self.end.items()}
        header = {
            "status": self.status,
            "reason": self.reason,
            "statuses": self.statuses,
            "reasons": self.reasons,
            "warnings": list(self.warnings),
            "stats": self.stats,
            "switch": self.switch,
        }
        write_archive(path, "trajectory", header, arrays)


class FlowError(RuntimeError):
    """A run failed. `trajectory` is what there is of it up to there.

    Raised by the verbs unless they are called with `throw=False`.
    """

    trajectory: Trajectory

    def __init__(self, trajectory: Trajectory):
        super().__init__(
            f"{trajectory.reason} (status {trajectory.status!r}; the path up to there is in the "
            "attribute `trajectory` of this error, or pass throw=False to get it returned)"
        )
        self.trajectory = trajectory

    def __reduce__(self):
        return type(self), (self.trajectory,)


def load(path: str | os.PathLike, like: Callable | PyTree) -> Trajectory:
    """Reads a trajectory that [`gflow.Trajectory.save`][] wrote.

    **Arguments:**

    - `path`: the file.
    - `like`: a model of the same structure, shapes and dtypes as the one that was trained; whatever is
        no array in it (activation functions, integers) is taken over.

    **Raises:** `ValueError` if the file is no trajectory, is truncated, comes from a newer gflow, or
    holds another model or dtype; `FileNotFoundError` if there is none.
    """
    header, arrays = read_archive(path, "trajectory")
    has_models = any(name.startswith("models/") for name in arrays)
    statuses, reasons = header.get("statuses"), header.get("reasons")
    return Trajectory(
        t=arrays["t"],
        s=arrays["s"],
        log_t=arrays["log_t"],
        switch=header["switch"],
        records=_under("records/", arrays),
        model=_restore(path, "model", like, arrays),
        models=_restore(path, "models", like, arrays) if has_models else None,
        step=arrays.get("step"),
        step_loss=arrays.get("step_loss"),
        status=header["status"],
        reason=header["reason"],
        warnings=tuple(header["warnings"]),
        stats=header["stats"],
        statuses=None if statuses is None else tuple(statuses),
        reasons=None if reasons is None else tuple(reasons),
        end=None if statuses is None else _under("end/", arrays),
    )


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _span(values: Any) -> str:
    """A number, or the range of those of all members."""
    low, high = (extreme.reduce(np.ravel(values)) for extreme in (np.fmin, np.fmax))
    return f"{low:.6g} to {high:.6g}" if low < high else f"{low:.6g}"


def without_folder(name: str, path: Path) -> str:
    """What to say of an argument that is a path in a folder that is missing; nothing if it is there."""
    if path.parent.is_dir():
        return ""
    return (
        f"{name} must lie in a folder that exists, but there is no {str(path.parent)!r}; make it, or give "
        "another path."
    )


def write_archive(
    path: str | os.PathLike, kind: str, header: Mapping[str, Any], arrays: Mapping[str, Any]
) -> None:
    """Writes named arrays and a JSON header to one file, atomically."""
    host = {name: np.asarray(jax.device_get(value)) for name, value in arrays.items()}
    full = dict(header) | {
        "kind": kind,
        "format": _FORMAT,
        "versions": {name: _version(name) for name in ("gflow-jax", "jax", "equinox", "diffrax")},
        "shapes": {name: list(value.shape) for name, value in host.items()},
        "dtypes": {name: str(value.dtype) for name, value in host.items()},
    }
    path = Path(path)
    if sentence := without_folder("path", path):
        raise FileNotFoundError(sentence)
    if path.is_dir():
        raise IsADirectoryError(f"path must be that of a file, but {str(path)!r} is a folder; add a name.")
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            # as bytes, because NumPy can't store every dtype of JAX (bfloat16)
            stored = {name: np.frombuffer(value.tobytes(), np.uint8) for name, value in host.items()}
            stored["header"] = np.frombuffer(json.dumps(full).encode(), np.uint8)
            np.savez(file, allow_pickle=False, **stored)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def read_archive(path: str | os.PathLike, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads what `write_archive` wrote, checked."""
    foreign = (
        f"{os.fspath(path)} is not a file that gflow wrote, or is damaged; expected a {kind} saved by "
        "this library."
    )
    try:
        with zipfile.ZipFile(path) as archive:  # np.load alone doesn't notice a damaged array
            if archive.testzip() is not None:
                raise ValueError("checksum")
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            stored_format, stored_kind = header["format"], header["kind"]
            arrays = {}
            if stored_format == _FORMAT:
                arrays = {
                    name: archive[name].view(np.dtype(header["dtypes"][name])).reshape(shape)
                    for name, shape in header["shapes"].items()
                }
    except FileNotFoundError:
        raise
    except (*_UNREADABLE, zipfile.BadZipFile) as error:
        raise ValueError(foreign) from error
    if stored_format != _FORMAT:
        raise ValueError(
            f"{os.fspath(path)} has format {stored_format}, written by gflow "
            f"{header.get('versions', {}).get('gflow-jax')}, but this version reads format {_FORMAT}; "
            "use the version that wrote it."
        )
    if stored_kind != kind:
        raise ValueError(f"{os.fspath(path)} holds a {stored_kind}, but a {kind} is wanted here.")
    return header, arrays


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _named_arrays(prefix: str, tree: PyTree) -> dict[str, Any]:
    return {
        prefix + "/" + jtu.keystr(path): _tree.numbers(leaf)
        for path, leaf in jtu.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    }


def _restore(path: str | os.PathLike, prefix: str, like: PyTree, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """`like` with its arrays replaced by the stored ones."""
    dynamic, static = eqx.partition(like, eqx.is_array)
    expected = _named_arrays(prefix, dynamic)
    stored = {name for name in arrays if name.startswith(prefix + "/")}
    if stored != set(expected):
        differ = sorted(stored ^ set(expected))
        raise ValueError(
            f"{os.fspath(path)} holds another model than `like`: they differ in the leaves "
            f"{', '.join(name.removeprefix(prefix + '/') for name in differ[:4])}; pass a model of the "
            "structure that was trained."
        )

    def take(location, leaf):
        value = arrays[prefix + "/" + jtu.keystr(location)]
        if _tree.is_key(leaf):
            return _tree.from_numbers(leaf, value)
        if value.dtype != leaf.dtype:
            raise ValueError(
                f"{os.fspath(path)} holds {value.dtype} in the leaf {jtu.keystr(location)} where `like` "
                f"has {leaf.dtype}; pass a model of that dtype (float64 needs jax_enable_x64)."
            )
        if prefix == "model" and value.shape != leaf.shape:
            raise ValueError(
                f"{os.fspath(path)} holds an array of shape {value.shape} in the leaf "
                f"{jtu.keystr(location)} where `like` has {leaf.shape}; pass a model of those sizes."
            )
        return jax.numpy.asarray(value)

    return eqx.combine(jtu.tree_map_with_path(take, dynamic), static)
