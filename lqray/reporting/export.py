"""`lqray export`: an experiment as one folder that explains itself."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lqray.experiment.foreign import in_csv, in_line
from lqray.experiment.headline import common_headline
from lqray.experiment.plan import published_plan
from lqray.experiment.secrets import masked
from lqray.experiment.yaml import leading_comment
from lqray.reporting.artifacts import DENSITY, ArtifactError, read_density, read_text
from lqray.reporting.claim import RECORD, Claim, record_of
from lqray.reporting.exported import ARTIFACTS, COLUMNS, FILE, NO_POINTS, POINTS, RUNS, SHARED, faults_of_run
from lqray.reporting.exported_page import Page, readme
from lqray.reporting.histories import read_histories
from lqray.reporting.levels import LEVELS, read_levels
from lqray.reporting.planned import Recorded, planned_records
from lqray.reporting.records import Run, experiment_tags
from lqray.reporting.report import ReportOptions, make_report, written
from lqray.reporting.selection import metrics_of, params_of, select
from lqray.reporting.targets import BYTES, BYTES_A_STEP, SECONDS, SECONDS_A_STEP
from lqray.store.tags import ATTEMPT, CODE, ERROR, GIT_COMMIT, GIT_DIRTY, HOLDER, HOST, MARK, PROGRESS

Raw = Literal["parquet", "csv", "none"]
_HERE = "."
"""The store of what a folder has, as its tables name it."""
_OF_LAUNCHES = (MARK, HOLDER, PROGRESS)
_OF_TABLES = ("wire/bits_per_coordinate", BYTES_A_STEP, BYTES, SECONDS, SECONDS_A_STEP)
"""Metrics whose last values tables, bytes and seconds to a target are made of."""
_log = logging.getLogger(__name__)

_TABLES: dict[str, Literal["markdown", "csv", "json", "latex"]] = {
    "report.md": "markdown",
    "report.csv": "csv",
    "report.json": "json",
    "report.tex": "latex",
}


@dataclass(frozen=True)
class _Artifact:
    """names: by which it is kept. unfinished: also of runs that are not finished."""

    file: str
    names: Sequence[str]
    read: Callable[[str, Run], dict[str, Any] | None]
    unfinished: bool = False


_ARTIFACTS = (
    _Artifact(DENSITY, ("density",), read_density),
    _Artifact(LEVELS, ("levels", "quantizer/level/0"), read_levels, unfinished=True),
)


class ExportError(ValueError):
    """A folder that cannot be exported to."""


@dataclass(frozen=True)
class ExportOptions:
    """report: of the tables. raw: of metrics.parquet or metrics.csv, a row for each point; none: neither these nor
    artifacts. metrics: shell patterns of those to keep beside those that the tables need, for a small folder; of
    artifacts `density.json` by the name density, `levels.json` by the name levels or that of a level's metric; all
    without any. hypothesis: what the runs were to show; None: the comment
    that the file begins with."""

    report: ReportOptions = field(default_factory=ReportOptions)
    raw: Raw = "parquet"
    metrics: Sequence[str] = ()
    hypothesis: str | None = None


def export(
    experiment: Recorded,
    folder: Path,
    options: ExportOptions,
    draw: Callable[[Path], Sequence[str]] | None = None,
) -> list[Path]:
    """Write tables, figures, the experiment file, every run's parameters and metrics, `record.json` and a README.
    Returns the files.

    Tables are made of the folder's own records, so that whoever has it makes the same. draw: writes figures to a
    folder; what it says of them goes into the README. The folder appears whole or not at all. Raises ExportError where
    there is something already, and what `make_report` raises.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"found something at {folder}; allowed: a folder that is empty or does not exist yet")
    planned, _ = planned_records([experiment], options.report.everything)
    chosen = select(planned, options.report.only, options.report.where)
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        text = _experiment_text(experiment, chosen)
        if text:
            (aside / FILE).write_text(text, encoding="utf-8")
        remarks = _write_records(experiment, chosen, aside, options)
        for line in remarks:
            _log.warning("%s", line)
        made = make_report([Recorded(experiment.name, str(aside))], options.report)
        made = replace(made, stores={experiment.name: _HERE})
        for name, shape in _TABLES.items():
            (aside / name).write_text(written(made, shape), encoding="utf-8")
        asked = options.hypothesis if options.hypothesis is not None else leading_comment(text or "")
        hypothesis = " ".join(asked.split())
        record = record_of(
            Claim(hypothesis, options.report, options.raw, options.metrics), experiment.name, chosen, made.comparison
        )
        (aside / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        said = draw(aside / "figures") if draw else []
        page = Page(record, made, chosen, [*said, *remarks], tuple(one.name for one in aside.iterdir()))
        (aside / "README.md").write_text(readme(page), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_records(experiment: Recorded, chosen: Sequence[Run], folder: Path, options: ExportOptions) -> list[str]:
    """Returns what is left out, in sentences."""
    recorded, remarks = _sound([_kept(one, options) for one in chosen if one.run_id])
    _write_runs(folder / "runs.csv", [_kept(one, options) for one in chosen], bool(options.metrics))
    shared = {key: _in_all([getattr(one, key) for one in recorded]) for key in SHARED}
    document: dict[str, Any] = {"experiment": experiment.name, "shared": shared}
    if options.raw == "none":
        document[POINTS] = NO_POINTS
    document["runs"] = [_plain(one, shared) for one in recorded]
    (folder / RUNS).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if options.raw == "none":
        return remarks
    remarks += _copy_artifacts(experiment.uri, recorded, folder / ARTIFACTS, options.metrics)
    write = _write_parquet if options.raw == "parquet" else _write_csv
    patterns = [*options.metrics, *_needed(recorded, options.report)] if options.metrics else []
    write(folder / f"{POINTS}.{options.raw}", _points(experiment, recorded, patterns))
    return remarks


def _kept(record: Run, options: ExportOptions) -> Run:
    """The same, with the metrics that are wanted, and without what a launch keeps for itself."""
    tags = {key: value for key, value in record.tags.items() if key not in _OF_LAUNCHES}
    if not options.metrics:
        return replace(record, tags=tags)
    wanted = [*options.metrics, *_OF_TABLES, *_needed([record], options.report)]
    metrics = {key: value for key, value in record.metrics.items() if _matches(key, wanted)}
    return replace(record, tags=tags, metrics=metrics)


def _needed(records: Sequence[Run], options: ReportOptions) -> list[str]:
    """Patterns of the metrics whose histories tables are made of; a name may be an ending."""
    names = [*options.metrics, common_headline(one.params for one in records).metric]
    sums = {BYTES: BYTES_A_STEP, SECONDS: SECONDS_A_STEP} if options.target is not None else {}
    without = [each for key, each in sums.items() if not all(key in one.metrics for one in records)]
    return [*names, *(f"*/{name}" for name in options.metrics), *sums, *without]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _in_all(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What is the same in all of them."""
    first = mappings[0] if mappings else {}
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in mappings)}


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


def _plain(record: Run, shared: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Any]:
    """For JSON, without what is shared."""
    metrics = {key: value if math.isfinite(value) else str(value) for key, value in record.metrics.items()}
    fields = {
        key: value for key, value in vars(record).items() if key != "ended" and value != ()
    }  # the last point says when
    common = shared or {}
    own = {
        key: {name: text for name, text in getattr(record, key).items() if name not in common.get(key, {})}
        for key in SHARED
    }
    return {**fields, **own, "metrics": metrics}


def _copy_artifacts(uri: str, records: Sequence[Run], folder: Path, patterns: Sequence[str]) -> list[str]:
    """Those that patterns match, all without any. Returns what is left out, in sentences."""
    remarks = []
    wanted = [one for one in _ARTIFACTS if not patterns or any(_matches(name, patterns) for name in one.names)]
    for record in records:
        for artifact in wanted:
            try:
                found = artifact.read(uri, record) if artifact.unfinished or record.status == "FINISHED" else None
            except ArtifactError as error:
                remarks.append(f"left out: {error}")
                continue
            if found is not None:
                (folder / record.run_id).mkdir(parents=True, exist_ok=True)
                (folder / record.run_id / artifact.file).write_text(json.dumps(found), encoding="utf-8")
    return remarks


def _write_runs(file: Path, records: Sequence[Run], varying: bool) -> None:
    """varying: of parameters only those that are not the same in all."""
    same = _in_all([one.params for one in records]) if varying and len(records) > 1 else {}
    params, metrics = sorted(params_of(records) - same.keys()), sorted(metrics_of(records))
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


def _points(experiment: Recorded, records: Sequence[Run], patterns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Columns of the points of metrics that patterns match, or of all, one metric at a time. time: seconds since the
    epoch."""
    import numpy as np

    names = {one.run_id: one.name for one in records}
    for key in sorted(metrics_of(records)):
        if patterns and not _matches(key, patterns):
            continue
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
