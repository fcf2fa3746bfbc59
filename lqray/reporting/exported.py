"""An exported experiment read in the place of a store: `lqray report`, `plot` and `compare` take its folder, so that
what was published can be looked at, and drawn again, without the store that it came from.

Whoever wrote the folder may be anybody: nothing of it is used before it is what `lqray export` writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lqray.experiment.foreign import in_csv, in_line, json_value
from lqray.store.errors import StoreError

RUNS, POINTS, FILE, ARTIFACTS = "runs.json", "metrics", "experiment.yaml", "artifacts"
NO_POINTS = "none"
"""In the place of points, of a folder that was exported without them."""
SHARED = ("params", "tags")
COLUMNS = ("run_id", "trial", "metric", "step", "value", "time")
_OPTIONAL: Mapping[str, Any] = {"error": None, "tags": {}, "started": 0.0, "experiment": "", "other_names": ()}
_STATES = ("FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED")
_NOT_FINITE = ("nan", "inf", "-inf")
_MOST_POINTS = 100_000_000
"""Of one metric: a few kilobytes of Parquet may hold more of them than any memory."""
_MOST_SAID, _MOST_SHOWN = 5, 80


class ExportedFolderError(StoreError):
    """A folder that is not as `lqray export` writes it. The message says in which file, what was found and where."""

    def __init__(self, file: Path, *faults: str) -> None:
        more = [f"and {len(faults) - _MOST_SAID} more such faults"] if len(faults) > _MOST_SAID else []
        said = "; ".join([*faults[:_MOST_SAID], *more])
        super().__init__(
            f"{in_line(file)}: {said}. Get the folder again, or make it again with `lqray export EXPERIMENT FOLDER`"
        )


def export_folder(uri: str) -> Path | None:
    """The folder, where a store's address is one that `lqray export` wrote; None for MLflow's."""
    if "://" in uri:
        return None
    folder = Path(uri)
    with suppress(OSError, ValueError):  # no name that a folder can have
        return folder if (folder / RUNS).is_file() else None
    return None


def experiment_of(folder: Path) -> tuple[str, str | None]:
    """(name, text of the experiment file where there is one). Raises ExportedFolderError."""
    name: str = _document(folder)["experiment"]
    content = _content(folder, FILE)
    try:
        return name, None if content is None else content.decode()
    except UnicodeDecodeError as error:
        raise ExportedFolderError(folder / FILE, f"found {error}; allowed: text in UTF-8") from None


def runs_in(folder: Path) -> list[Mapping[str, Any]]:
    """Fields of `lqray.store.runs.Run`, of each run. JSON knows neither NaN nor infinity: they are text.

    Raises ExportedFolderError.
    """
    runs: list[dict[str, Any]] = _document(folder)["runs"]
    return [
        {
            **{key: one.get(key, _OPTIONAL.get(key)) for key in _ALLOWED},
            "metrics": {key: float(value) for key, value in one["metrics"].items()},
            "other_names": tuple(one.get("other_names", ())),
        }
        for one in runs
    ]


def faults_of_run(run: Mapping[str, Any]) -> list[str]:
    """What of a run's fields is not as it has to be, each in a sentence that begins with its key."""
    faults = []
    for key, (is_sound, allowed) in _ALLOWED.items():
        value = run.get(key, _OPTIONAL.get(key, _MISSING))
        found = {key: value}
        if key in _MAPPINGS:
            if not isinstance(value, dict):
                faults.append(f"{key}: found {_shown(value)}; allowed: a mapping")
                continue
            found = {f"{key}.{in_line(name)[:_MOST_SHOWN]}": one for name, one in value.items()}
        faults += [f"{at}: found {_shown(one)}; allowed: {allowed}" for at, one in found.items() if not is_sound(one)]
    return faults


def points_in(folder: Path, key: str) -> Iterator[tuple[str, Any, Any, Any]]:
    """(run id, steps, values, seconds since the epoch), numpy arrays, of a metric. Raises ExportedFolderError."""
    import numpy as np
    import pyarrow as pa

    name = next((one for one in (f"{POINTS}.parquet", f"{POINTS}.csv") if (folder / one).is_file()), None)
    if name is None:
        if _document(folder).get(POINTS) == NO_POINTS:
            return
        raise ExportedFolderError(folder / f"{POINTS}.parquet", f"found nothing; allowed: it, or {POINTS}.csv")
    file = _inside(folder, name)
    try:
        table = _table(file, key)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        why = in_line(" ".join(str(error).split()))[:300]
        fault = f"found what is no table of points ({why}); allowed: {', '.join(COLUMNS)}"
        raise ExportedFolderError(file, fault) from None
    if not len(table):
        return
    names = table["run_id"].to_numpy()
    order = np.argsort(names, kind="stable")
    steps, values, times = (table[name].to_numpy()[order] for name in ("step", "value", "time"))
    runs, starts = np.unique(names[order], return_index=True)
    for run_id, first, end in zip(runs, starts, [*starts[1:], len(names)], strict=True):
        yield str(run_id), steps[first:end], values[first:end], times[first:end]


def artifact_in(folder: Path, run_id: str, name: str, most_bytes: int) -> bytes | None:
    """An artifact that was exported; a byte more than `most_bytes` of one that is longer. Raises ExportedFolderError,
    OSError."""
    return _content(folder, f"{ARTIFACTS}/{run_id}/{name}", most_bytes + 1)


def _table(file: Path, key: str) -> Any:
    """Points of a metric. Raises what pyarrow raises; ValueError."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    kinds = (pa.string(), pa.string(), pa.string(), pa.int64(), pa.float64(), pa.float64())
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    shape = file.suffix.removeprefix(".")
    missing = set(COLUMNS) - set(ds.dataset(file, format=shape).schema.names)
    if missing:
        raise ValueError(f"no columns {', '.join(sorted(missing))}")
    points = ds.dataset(file, schema=schema, format=shape)
    name = in_csv(key) if shape == "csv" else key
    wanted, batches, count = ["run_id", "step", "value", "time"], [], 0
    for batch in points.to_batches(columns=wanted, filter=ds.field("metric") == name):
        count += len(batch)
        if count > _MOST_POINTS:
            raise ValueError(f"more than {_MOST_POINTS:,} points of {key}")
        batches.append(batch)
    table = pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in wanted]))
    for column in ("run_id", "step", "time"):  # of values, CSV has NaN as nothing
        if table[column].null_count:
            raise ValueError(f"points without {column}")
    return table


def _document(folder: Path) -> dict[str, Any]:
    """Raises ExportedFolderError unless all of it is as it has to be."""
    file, content = folder / RUNS, _content(folder, RUNS)
    try:
        found = json_value(content or b"")
    except ValueError as error:
        what = "an empty file" if not content else f"what is no JSON ({error})"
        raise ExportedFolderError(file, f"found {what}; allowed: the document that lqray writes there") from None
    if not isinstance(found, dict):
        raise ExportedFolderError(file, f"found {_shown(found)}; allowed: a mapping with experiment and runs")
    faults = []
    if not _is_name(found.get("experiment")):
        faults.append(f"experiment: found {_shown(found.get('experiment', _MISSING))}; allowed: a name")
    runs = found.get("runs", _MISSING)
    if isinstance(runs, list):
        faults += _with_shared(found.get("shared", {}), runs)
        for number, run in enumerate(runs):
            if isinstance(run, dict):
                faults += [f"runs[{number}].{fault}" for fault in faults_of_run(run)]
            else:
                faults.append(f"runs[{number}]: found {_shown(run)}; allowed: a mapping with {', '.join(_ALLOWED)}")
    else:
        faults.append(f"runs: found {_shown(runs)}; allowed: a list of runs")
    if faults:
        raise ExportedFolderError(file, *faults)
    return found


def _with_shared(shared: Any, runs: list[Any]) -> list[str]:
    """Give each run what all of them have, which is written once. Returns faults, in sentences."""
    if not isinstance(shared, dict) or not all(isinstance(shared.get(key, {}), dict) for key in SHARED):
        return [f"shared: found {_shown(shared)}; allowed: a mapping with {' and '.join(SHARED)}"]
    for run in runs:
        for key in SHARED:
            if isinstance(run, dict) and isinstance(run.get(key, {}), dict):
                run[key] = {**shared.get(key, {}), **run.get(key, {})}
    return []


def _content(folder: Path, name: str, most_bytes: int = -1) -> bytes | None:
    """Of a file; None where there is none. Raises ExportedFolderError, also for one that cannot be read."""
    file = _inside(folder, name)
    try:
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            return stream.read(most_bytes)
    except OSError as error:
        raise ExportedFolderError(file, f"it cannot be read ({error.strerror})") from None


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder. Raises ExportedFolderError where a link leads out of it: its content would be taken for the
    folder's, and published with it."""
    file = folder / name
    try:
        there = file.resolve()
    except (OSError, RuntimeError) as error:
        raise ExportedFolderError(file, f"it cannot be read ({in_line(error)})") from None
    if not there.is_relative_to(folder.resolve()):
        raise ExportedFolderError(file, f"found a link to {in_line(there)}; allowed: a file within the folder")
    return file


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    text = in_line(repr(value)[: 2 * _MOST_SHOWN])
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} ..."


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_metric(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return value in _NOT_FINITE if isinstance(value, str) else isinstance(value, float) or _is_number(value)


_MISSING = object()
_ALLOWED: Mapping[str, tuple[Any, str]] = {
    "run_id": (
        lambda value: isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32}", value) is not None,
        "32 hexadecimal digits",
    ),
    "trial_id": (
        lambda value: isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}", value) is not None,
        "16 hexadecimal digits",
    ),
    "name": (_is_name, "a name"),
    "status": (lambda value: value in _STATES, ", ".join(_STATES)),
    "params": (_is_text, "a text"),
    "metrics": (_is_metric, f"a number, or one of {', '.join(_NOT_FINITE)} as a text"),
    "error": (lambda value: value is None or _is_text(value), "a text, or null"),
    "tags": (_is_text, "a text"),
    "started": (lambda value: _is_number(value) and math.isfinite(value), "seconds since the epoch"),
    "experiment": (_is_text, "a text"),
    "other_names": (
        lambda value: isinstance(value, list | tuple) and all(map(_is_name, value)),
        "a list of names",
    ),
}
_MAPPINGS = ("params", "metrics", "tags")
