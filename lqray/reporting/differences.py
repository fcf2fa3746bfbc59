"""`lqray compare`: what differs between runs, in configuration, code and result."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lqray.experiment import foreign
from lqray.experiment.digests import differ
from lqray.reporting.records import Run
from lqray.store.tags import (
    ATTEMPT,
    CODE,
    COMMAND,
    DATA,
    GIT_COMMIT,
    GIT_DIRTY,
    HOST,
    MACHINE,
    MLFLOW,
    PARTS,
    PYTHON,
    RAY,
    TORCH,
    VERSION,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

_CODE = {
    GIT_COMMIT: "git commit",
    GIT_DIRTY: "uncommitted changes",
    PARTS: "code of its parts",
    DATA: "files of its data",
    CODE: "code version",
    VERSION: "lqray",
    PYTHON: "python",
    TORCH: "torch",
    RAY: "ray",
    MLFLOW: "mlflow",
    HOST: "launched on",
    MACHINE: "machine",
    COMMAND: "command",
    ATTEMPT: "attempt",
}
_DIGESTS = (PARTS, DATA)
_NOTHING = "-"
_MOST_WIDE = 34
"""Ids fit; longer words, such as paths, are broken."""


@dataclass(frozen=True)
class Row:
    """One thing of every run, as text. differs: whether they are not all equal."""

    what: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs are not alike in it."""
        return len(set(self.values)) > 1


class DigestRow(Row):
    """Digests of what runs had (`lqray.experiment.digests`): those of unlike kinds are no difference."""

    @property
    def differs(self) -> bool:
        """Whether any two that can be compared are not alike."""
        return differ(one for one in self.values if one != _NOTHING)


@dataclass(frozen=True)
class Differences:
    """Of runs, in the order asked for: rows by section (run, configuration, code, result)."""

    records: tuple[Run, ...]
    sections: Mapping[str, tuple[Row, ...]]


def differences(records: Sequence[Run]) -> Differences:
    """Everything that is known of the runs, beside each other."""
    first = records[0]
    run = [
        Row("run id", tuple(one.run_id for one in records)),
        Row("experiment", tuple(one.experiment for one in records)),
        Row("trial id", tuple(one.trial_id for one in records)),
        Row("state", tuple(one.state for one in records)),
        Row("error", tuple(one.error or _NOTHING for one in records)),
    ]
    keys = dict.fromkeys(key for one in records for key in sorted(one.params))
    configuration = [Row(key, tuple(one.params.get(key, _NOTHING) for one in records)) for key in keys]
    code = [
        (DigestRow if tag in _DIGESTS else Row)(name, tuple(one.tags.get(tag, _NOTHING) for one in records))
        for tag, name in _CODE.items()
    ]
    metrics = sorted({key for one in records for key in one.metrics})
    result = [Row(key, tuple(_against(one, first, key) for one in records)) for key in metrics]
    sections = {"run": run, "configuration": configuration, "code": code, "result": result}
    return Differences(tuple(records), {name: tuple(rows) for name, rows in sections.items()})


def shown(found: Differences, everything: bool, width: int) -> RenderableType:
    """On a terminal of `width` characters: what differs; or all. Where there is no room for all runs beside each other,
    in several tables."""
    from rich.console import Group

    sections = {name: _chosen(rows, everything) for name, rows in found.sections.items()}
    what = max((len(row.what) + 2 for rows in sections.values() for row in rows), default=1)
    left = width - min(what, _MOST_WIDE) - 4
    tables: list[list[int]] = [[]]
    for at, record in enumerate(found.records):
        texts = [record.name, *(row.values[at] for rows in sections.values() for row in rows)]
        words = [len(foreign.in_line(word)) for text in texts for word in text.split()]
        needed = min(max(words, default=1), _MOST_WIDE) + 3
        if tables[-1] and left < needed:
            tables.append([])
            left = width - min(what, _MOST_WIDE) - 4
        tables[-1].append(at)
        left -= needed
    return Group(*(_table(found, sections, runs) for runs in tables))


def _table(found: Differences, sections: Mapping[str, Sequence[Row]], runs: Sequence[int]) -> RenderableType:
    """Of some of the runs."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, header_style="bold")
    table.add_column("", overflow="fold")
    for at in runs:
        table.add_column(foreign.rich_text(found.records[at].name), overflow="fold")
    for section, rows in sections.items():
        table.add_row(Text.assemble((section, "bold"), "" if rows else ": no difference"))
        for row in rows:
            table.add_row(foreign.rich_text(f"  {row.what}"), *(foreign.rich_text(row.values[at]) for at in runs))
    return table


def in_markdown(found: Differences, everything: bool) -> str:
    """The same in Markdown."""
    names = [foreign.in_markdown(one.name) for one in found.records]
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for section, rows in found.sections.items():
        chosen = _chosen(rows, everything)
        lines.append(f"| **{section}**{'' if chosen else ': no difference'} |" + " |" * len(names))
        lines += ["| " + " | ".join(map(foreign.in_markdown, (row.what, *row.values))) + " |" for row in chosen]
    return "\n".join(lines) + "\n"


def in_json(found: Differences, everything: bool) -> str:
    """The same for programs; metrics as numbers, NaN and infinity as null."""
    document: dict[str, Any] = {"runs": [one.run_id for one in found.records]}
    for section, rows in found.sections.items():
        document[section] = {row.what: list(row.values) for row in _chosen(rows, everything)}
    for key in document["result"]:
        values = [one.metrics.get(key) for one in found.records]
        document["result"][key] = [value if value is not None and math.isfinite(value) else None for value in values]
    return json.dumps(document, indent=1) + "\n"


def _chosen(rows: Sequence[Row], everything: bool) -> list[Row]:
    return [row for row in rows if row.differs or everything]


def _against(record: Run, first: Run, key: str) -> str:
    """A metric, with its difference from that of the first run."""
    value, other = record.metrics.get(key), first.metrics.get(key)
    if value is None:
        return _NOTHING
    text = f"{value:.6g}"
    if record is first or other is None or not math.isfinite(value - other) or value == other:
        return text
    share = f", {(value - other) / abs(other):+.1%}" if other else ""
    return f"{text} ({value - other:+.3g}{share})"
