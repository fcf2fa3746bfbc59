"""The README of an exported folder."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lqray.experiment.foreign import in_line, in_markdown, in_markdown_code
from lqray.reporting.exported import ARTIFACTS, COLUMNS, FILE, POINTS
from lqray.reporting.report import Report, written
from lqray.store.runs import Run
from lqray.store.tags import GIT_COMMIT, GIT_DIRTY, MLFLOW, PYTHON, RAY, TORCH

_FILES = {
    "report.md": (
        "`report.md`, `.csv`, `.json`, `.tex`",
        "how they compare; the JSON names the runs behind every number",
    ),
    "record.json": (
        "`record.json`",
        "what was asked, runs, seeds, commands, code, machines, and what came out, with p-values",
    ),
    FILE: (f"`{FILE}`", "the experiment file: what was asked for"),
    "runs.csv": ("`runs.csv`, `runs.json`", "every run: parameters, final metrics, code, errors"),
    **{
        f"{POINTS}.{raw}": (f"`{POINTS}.{raw}`", f"points of metrics: {', '.join(COLUMNS)} (seconds since the epoch)")
        for raw in ("parquet", "csv")
    },
    ARTIFACTS: (
        "`artifacts/`",
        "of each run, `density.json`: its last gradient's density; `levels.json`: its levels by step",
    ),
    "figures": ("`figures/`", "see below"),
}
_AGAIN = """With one of these versions of lqray:

{codes}

```
lqray run experiment.yaml
lqray report experiment.yaml{options}
```
"""
_NO_FILE = """The experiment file is not to be had from the store; `runs.csv` has every parameter. The runs were made by

{codes}
"""


@dataclass(frozen=True)
class Page:
    """record: of `record.json`. said: of figures and what is left out, in sentences. files: names in the folder."""

    record: Mapping[str, Any]
    report: Report
    records: Sequence[Run]
    said: Sequence[str]
    files: Collection[str]


def readme(page: Page) -> str:
    """In Markdown."""
    record, runs = page.record, [one for one in page.records if one.run_id]
    codes = sorted({in_markdown(_code(one)) for one in runs})
    said = [in_markdown(line, sentence=True) for line in page.said]
    hypothesis = in_markdown(record["hypothesis"], sentence=True)
    files = "\n".join(f"| {name} | {what} |" for file, (name, what) in _FILES.items() if file in page.files)
    return f"""# {in_markdown(record["experiment"])}
{f"{chr(10)}{hypothesis}{chr(10)}" if hypothesis else ""}
{len(runs)} runs of lqray, begun {_when(record)}, exported from their records in MLflow.

| file | what |
| --- | --- |
{files}

`lqray report FOLDER` reads this folder in the place of a store, as `plot` and `compare` do.

## How they compare

{written(page.report, "markdown")}
## Figures

{_lines(said or ["none"])}

## To run it again

{(_AGAIN if FILE in page.files else _NO_FILE).format(codes=_lines(codes), options=command_options(record["report"]))}
These runs were launched by

{_lines(list(map(in_markdown_code, record["commands"])))}

Trials are functions of their parameters and seed: on the same kind of machine, with the same versions, the metrics are
the same to the last bit, but for times.
"""


def _when(record: Mapping[str, Any]) -> str:
    first, last = (str(record[key])[:10] for key in ("first_run_began", "last_run_began"))
    return "at a time unknown" if record["date"] is None else first if first == last else f"from {first} to {last}"


def command_options(asked: Mapping[str, Any]) -> str:
    """What `lqray report` has to be told for the same table, after a space each."""
    words = [f"--metric {one}" for one in asked.get("metrics", ())]
    words += [f"--group-by {one}" for one in asked.get("group_by", ())]
    words += [f"--{key} {asked[key]}" for key in ("baseline", "target") if asked.get(key) is not None]
    for key in ("tuned", "tuning_seeds"):
        if asked.get(key):
            words.append(f"--{key.replace('_', '-')} {','.join(asked[key])}")
    return "".join(f" {in_line(shlex.quote(part))}" for word in words for part in word.split(" ", 1))


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
