"""`lqray export`: an experiment as one folder that explains itself."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lqray.experiment.foreign import in_csv, in_line, in_markdown, in_markdown_code
from lqray.experiment.plan import published_plan
from lqray.experiment.secrets import masked
from lqray.reporting.artifacts import DENSITY, ArtifactError, read_density, read_text
from lqray.reporting.exported import ARTIFACTS, COLUMNS, FILE, POINTS, RUNS, faults_of_run
from lqray.reporting.histories import read_histories
from lqray.reporting.planned import Recorded
from lqray.reporting.records import Run, experiment_tags
from lqray.reporting.report import Report, written
from lqray.reporting.selection import metrics_of, params_of
from lqray.store.tags import ATTEMPT, CODE, COMMAND, ERROR, GIT_COMMIT, GIT_DIRTY, HOST, MLFLOW, PYTHON, RAY, TORCH

Raw = Literal["parquet", "csv"]
_log = logging.getLogger(__name__)

_TABLES: dict[str, Literal["markdown", "csv", "json", "latex"]] = {
    "report.md": "markdown",
    "report.csv": "csv",
    "report.json": "json",
    "report.tex": "latex",
}
_ASKED = """| `experiment.yaml` | the experiment file: what was asked for |
"""
_AGAIN = """With one of these versions of lqray:

{codes}

```
lqray run experiment.yaml
lqray report experiment.yaml
```
"""
_NO_FILE = """The experiment file is not to be had from the store; `runs.csv` has every parameter. The runs were made by

{codes}
"""


class ExportError(ValueError):
    """A folder that cannot be exported to."""


def export(
    experiment: Recorded, report: Report, folder: Path, raw: Raw, draw: Callable[[Path], Sequence[str]] | None = None
) -> list[Path]:
    """Write tables, figures, the experiment file, every run's parameters and metrics, and a README. Returns the files.

    raw: of metrics.parquet or metrics.csv, a row for each point. draw: writes figures to a folder; what it says of them
    goes into the README. The folder appears whole or not at all. Raises ExportError where there is something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"found something at {folder}; allowed: a folder that is empty or does not exist yet")
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for name, shape in _TABLES.items():
            (aside / name).write_text(written(report, shape), encoding="utf-8")
        text = _experiment_text(experiment, report.records)
        if text:
            (aside / FILE).write_text(text, encoding="utf-8")
        recorded, remarks = _sound([one for one in report.records if one.run_id])
        _write_runs(aside / "runs.csv", report.records)
        document = {"experiment": experiment.name, "runs": [_plain(one) for one in recorded]}
        (aside / RUNS).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        remarks += _copy_artifacts(experiment.uri, recorded, aside / ARTIFACTS)
        write = _write_parquet if raw == "parquet" else _write_csv
        write(aside / f"{POINTS}.{raw}", _points(experiment, recorded))
        for line in remarks:
            _log.warning("%s", line)
        said = draw(aside / "figures") if draw else []
        readme = _readme(experiment, report, raw, [*said, *remarks], text is not None)
        (aside / "README.md").write_text(readme, encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _experiment_text(experiment: Recorded, records: Sequence[Run]) -> str | None:
    """The file's text: as it was given, launched last, or kept with a run."""
    if experiment.file is not None:
        return masked(experiment.file.document.text)
    plan = published_plan(experiment_tags(experiment.uri, experiment.name))
    if plan:
        return plan[1]
    first = next((one for one in records if one.run_id), None)  # the runs of a launch share their file
    try:
        return read_text(experiment.uri, first, FILE) if first else None
    except ArtifactError as error:
        _log.warning("%s", error)
        return None


def _sound(records: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Runs that an export can hold, and of the others, in a sentence, why it cannot: another user of the store may have
    written them, and their ids become names of files."""
    sound, remarks = [], []
    for one in records:
        faults = faults_of_run(_plain(one))
        if faults:
            remarks.append(f"left out: run {in_line(one.run_id)} ({in_line(one.name)}): {'; '.join(faults)}")
        else:
            sound.append(one)
    return sound, remarks


def _plain(record: Run) -> dict[str, Any]:
    metrics = {key: value if math.isfinite(value) else str(value) for key, value in record.metrics.items()}
    fields = {key: value for key, value in vars(record).items() if key != "ended"}  # the last point says when
    return {**fields, "params": dict(record.params), "metrics": metrics, "tags": dict(record.tags)}


def _copy_artifacts(uri: str, records: Sequence[Run], folder: Path) -> list[str]:
    """Returns what is left out, in sentences."""
    remarks = []
    for one in records:
        try:
            found = read_density(uri, one) if one.status == "FINISHED" else None
        except ArtifactError as error:
            remarks.append(f"left out: {error}")
            continue
        if found is not None:
            (folder / one.run_id).mkdir(parents=True, exist_ok=True)
            (folder / one.run_id / DENSITY).write_text(json.dumps(found), encoding="utf-8")
    return remarks


def _write_runs(file: Path, records: Sequence[Run]) -> None:
    params, metrics = sorted(params_of(records)), sorted(metrics_of(records))
    tags = (GIT_COMMIT, GIT_DIRTY, CODE, HOST, ATTEMPT, ERROR)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(map(in_csv, ["run_id", "trial_id", "name", "state", *params, *metrics, *tags]))
        for one in records:
            values = [one.metrics.get(key, "") for key in metrics]
            own = [one.tags.get(key, "") for key in tags]
            parameters = [one.params.get(key, "") for key in params]
            cells = [one.run_id, one.trial_id, one.name, one.state, *parameters, *values, *own]
            writer.writerow(map(in_csv, cells))


def _points(experiment: Recorded, records: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Columns of all points, one metric at a time. time: seconds since the epoch."""
    import numpy as np

    names = {one.run_id: one.name for one in records}
    for key in sorted(metrics_of(records)):
        found = read_histories(experiment.uri, experiment.name, list(names), key)
        if not found:
            continue
        runs = [run_id for run_id in names if run_id in found]
        lengths = [len(found[run_id]) for run_id in runs]
        yield {
            "run_id": np.repeat(runs, lengths),
            "trial": np.repeat([names[run_id] for run_id in runs], lengths),
            "metric": np.repeat([key], sum(lengths)),
            "step": np.concatenate([found[run_id].steps for run_id in runs]),
            "value": np.concatenate([found[run_id].values for run_id in runs]),
            "time": np.concatenate([found[run_id].times for run_id in runs]),
        }


def _write_parquet(file: Path, parts: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = (pa.string(), pa.string(), pa.string(), pa.int64(), pa.float64(), pa.float64())
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(pa.table(part, schema=schema))


def _write_csv(file: Path, parts: Iterator[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        text = cache(in_csv)
        for part in parts:
            for run_id, trial, metric, *numbers in zip(*(part[name].tolist() for name in COLUMNS), strict=True):
                writer.writerow([run_id, text(trial), text(metric), *numbers])


def _readme(experiment: Recorded, report: Report, raw: Raw, figures: Sequence[str], with_file: bool) -> str:
    runs = [one for one in report.records if one.run_id]
    codes = sorted({in_markdown(_code(one)) for one in runs})
    commands = sorted({one.tags[COMMAND] for one in runs if COMMAND in one.tags})
    said = [in_markdown(line, sentence=True) for line in figures]
    return f"""# {in_markdown(experiment.name)}

{len(runs)} runs of lqray, exported from their records in MLflow.

| file | what |
| --- | --- |
| `report.md`, `.csv`, `.json`, `.tex` | how they compare; the JSON names the runs behind every number |
{_ASKED if with_file else ""}| `runs.csv`, `runs.json` | every run: parameters, final metrics, code, errors |
| `metrics.{raw}` | every point of every metric: {", ".join(COLUMNS)} (seconds since the epoch) |
| `artifacts/` | of each run, `density.json`: its last gradient's density, and its levels |
| `figures/` | see below |

`lqray report ./FOLDER` reads this folder in the place of a store, as `plot` and `compare` do; a word without a slash is
an experiment's name.

## How they compare

{written(report, "markdown")}
## Figures

{_lines(said or ["none"])}

## To run it again

{(_AGAIN if with_file else _NO_FILE).format(codes=_lines(codes))}
These runs were launched by

{_lines(list(map(in_markdown_code, commands)))}

Trials are functions of their parameters and seed: on the same kind of machine, with the same versions, the metrics are
the same to the last bit, but for times.
"""


def _lines(items: Sequence[str]) -> str:
    return "\n".join(f"* {item}" for item in items) or "* unknown"


def _code(record: Run) -> str:
    tags = record.tags
    commit = tags.get(GIT_COMMIT, "no git commit known")
    dirty = " with uncommitted changes" if tags.get(GIT_DIRTY) == "true" else ""
    versions = ", ".join(
        f"{key.removeprefix('lqray.')} {tags[key]}" for key in (PYTHON, TORCH, RAY, MLFLOW) if key in tags
    )
    return f"lqray {tags.get('lqray.version', '?')} ({commit}{dirty}; code {tags.get('lqray.code', '?')}), {versions}"
