"""Tables of records, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lqray.reporting.records import Record

if TYPE_CHECKING:
    from rich.table import Table

_NOTHING = "-"


@dataclass(frozen=True)
class Column:
    """A column: its title and how a record fills it."""

    title: str
    cell: Callable[[Record], str]
    numeric: bool = True


def _metric(key: str, shape: str) -> Callable[[Record], str]:
    return lambda record: format(record.metrics[key], shape) if key in record.metrics else _NOTHING


def _param(key: str) -> Callable[[Record], str]:
    return lambda record: record.params.get(key, _NOTHING)


COMPARISON = (
    Column("trial", lambda record: record.name, numeric=False),
    Column("method", _param("quantizer.method"), numeric=False),
    Column("bits", _param("quantizer.bits")),
    Column("bits per coordinate", _metric("wire/bits_per_coordinate", ".3f")),
    Column("test accuracy", _metric("test/accuracy", ".2%")),
    Column("seconds per step", _metric("time/seconds_per_step", ".4f")),
    Column("NMSE", _metric("quantizer/mean_nmse", ".3g")),
    Column("status", lambda record: record.status.lower(), numeric=False),
)


def terminal_table(records: Sequence[Record], columns: Sequence[Column] = COMPARISON) -> Table:
    """A rich table with a row for each record."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(header_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        title = column.title.replace(" ", "\n", 1) if len(column.title) > 8 else column.title
        table.add_column(title, justify="right" if column.numeric else "left", no_wrap=True, vertical="bottom")
    for record in records:
        style = None if record.status == "FINISHED" else "red" if record.status == "FAILED" else "yellow"
        table.add_row(*(column.cell(record) for column in columns), style=style)
    return table


def markdown_table(records: Sequence[Record], columns: Sequence[Column] = COMPARISON) -> str:
    """The same in Markdown."""
    head = "| " + " | ".join(column.title for column in columns) + " |"
    rule = "| " + " | ".join("---:" if column.numeric else "---" for column in columns) + " |"
    rows = ["| " + " | ".join(column.cell(record) for column in columns) + " |" for record in records]
    return "\n".join([head, rule, *rows])
