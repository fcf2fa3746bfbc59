"""A comparison as a table: for the terminal, in Markdown and LaTeX. See `machine` for CSV and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lqray.experiment.digests import differ
from lqray.experiment.foreign import in_latex, in_line, in_markdown, rich_text
from lqray.experiment.headline import written
from lqray.reporting.comparison import Comparison, Group
from lqray.reporting.intervals import Spread
from lqray.reporting.methods import look
from lqray.reporting.savings_table import bold_notes, savings_cell, savings_notes, savings_titles
from lqray.reporting.selection import METHOD
from lqray.reporting.targets import some_of, target_note
from lqray.store.tags import DATA, PARTS

if TYPE_CHECKING:
    from rich.table import Table

NOTHING = "-"
_ORIGINS = {
    PARTS: ("Other code", "whose parts differ in code"),
    DATA: ("Other data", "whose data were of files that differ"),
}
_Cell = Callable[[Group], str]


@dataclass(frozen=True)
class Column:
    """A column: its title and how a group fills it. latex: where that differs."""

    title: str
    cell: _Cell
    numeric: bool = True
    latex: _Cell | None = None


def columns_of(comparison: Comparison) -> list[Column]:
    """All columns that say something of at least one group."""
    runs = Column("runs", lambda group: group.runs)
    found = [column for name in comparison.metrics for column in _metric_columns(name, comparison)]
    found += [
        Column("bits per coordinate", _of_cost("bits_per_coordinate", lambda value: f"{value:.3f}")),
        Column("MB sent", _of_cost("bytes_sent", lambda value: f"{value / 1e6:.3g}")),
        Column("seconds per step", _of_cost("seconds_per_step", lambda value: f"{value:.4f}")),
        *(Column(title, partial(savings_cell, what=what)) for what, title in savings_titles(comparison).items()),
    ]
    return [
        *key_columns(comparison),
        runs,
        *(one for one in found if any(one.cell(group) != NOTHING for group in comparison.groups)),
    ]


def key_columns(comparison: Comparison) -> list[Column]:
    """Those that say which group a row is."""
    return [_key_column(key, comparison.keys) for key in comparison.keys]


def terminal_table(comparison: Comparison, columns: Sequence[Column] = ()) -> Table:
    """A rich table with a row for each group. columns: all of `columns_of` without any."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1))
    columns = columns or columns_of(comparison)
    for column in columns:
        table.add_column(rich_text(column.title), justify="right" if column.numeric else "left", vertical="bottom")
    for group in comparison.groups:
        style = "red" if group.states.get("failed") else None if _complete(group) else "yellow"
        table.add_row(*(rich_text(column.cell(group)) for column in columns), style=style)
    return table


def markdown_table(comparison: Comparison, columns: Sequence[Column] = ()) -> str:
    """The same in Markdown."""
    columns = columns or columns_of(comparison)
    head = "| " + " | ".join(in_markdown(column.title) for column in columns) + " |"
    rule = "| " + " | ".join("---:" if column.numeric else "---" for column in columns) + " |"
    rows = ["| " + " | ".join(in_markdown(one.cell(group)) for one in columns) + " |" for group in comparison.groups]
    return "\n".join([head, rule, *rows])


def latex_table(comparison: Comparison, columns: Sequence[Column] = (), said: Sequence[str] = ()) -> str:
    """The same for LaTeX with the package booktabs; bold are means that none is significantly better than, see
    `significance`. Comments name the runs, and begin with what is `said`, or else what the columns of the comparison
    mean."""
    columns = columns or columns_of(comparison)
    shape = "".join("r" if column.numeric else "l" for column in columns)
    lines = [f"% {in_line(line)}" for line in said or [*notes(comparison), *bold_notes(comparison)]]
    lines += [f"\\begin{{tabular}}{{{shape}}}", "\\toprule"]
    lines += [" & ".join(in_latex(column.title) for column in columns) + " \\\\", "\\midrule"]
    for group in comparison.groups:
        cells = [column.latex(group) if column.latex else in_latex(column.cell(group)) for column in columns]
        lines.append(" & ".join(cells) + " \\\\")
        lines.append(f"% runs: {in_line(' '.join(one.run_id for one in group.finished) or 'none')}")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def notes(comparison: Comparison) -> list[str]:
    """What the columns mean, in sentences."""
    said = ["±: standard deviation over runs; [ ]: 95% interval of the mean (Student's t; of shares on the logit)."]
    said += savings_notes(comparison)
    if any(group.not_finite for group in comparison.groups):
        said.append("Not finite: finished with a metric that is NaN or infinite; these runs enter none of its numbers.")
    for tag, what in _ORIGINS.items():
        if several := [digests for one in comparison.groups if differ(digests := one.digests(tag))]:
            shown = "; ".join(" and ".join(f"{runs} of {one}" for one, runs in each.items()) for each in several[:4])
            said.append(f"{what[0]}: {len(several)} rows have runs {what[1]} ({shown}): lqray compare.")
    if comparison.target is not None:
        said.append(target_note(comparison.metrics[0], comparison.target, comparison.smooth))
    return said


def _key_column(key: str, keys: Sequence[str]) -> Column:
    ending = key.rpartition(".")[2]
    title = key if sum(other.rpartition(".")[2] == ending for other in keys) > 1 else ending

    def cell(group: Group) -> str:
        value = group.keys[key]
        return NOTHING if value is None else value

    if key == METHOD:
        return Column(title, cell, numeric=False, latex=lambda group: in_latex(look(cell(group)).label))
    return Column(title.replace("_", " "), cell, numeric=key != "trial")


def _complete(group: Group) -> bool:
    return set(group.states) == {"finished"} and not group.not_finite


def _metric_columns(name: str, comparison: Comparison) -> list[Column]:
    title = name.replace("/", " ").replace("_", " ")
    show = _number(name)
    bold = {id(comparison.groups[index]) for index in comparison.leading(name)}

    def final(group: Group) -> Spread:
        return group.metrics[name].final

    def latex(group: Group) -> str:
        text = _plus_minus(final(group), show).replace("±", "\\pm").replace("%", "\\%")
        if math.isnan(final(group).mean):
            return text
        return f"$\\mathbf{{{text}}}$" if id(group) in bold else f"${text}$"

    def difference(group: Group) -> str:
        found = group.metrics[name].difference
        if found is None:
            return NOTHING
        p = "" if math.isnan(found.p_value) else f" (p {found.p_value:.2g})"
        return " ".join([_signed(found.spread.mean, show), *_ends(found.spread, show)]) + p

    def to_target(what: str, shape: Callable[[float], str]) -> _Cell:
        def cell(group: Group) -> str:
            measured = group.metrics[name]
            if not measured.reached:
                return NOTHING
            return shape(measured.to_target[what].mean) + some_of(measured.reached, len(group.finished))

        return cell

    columns = [
        Column(title, lambda group: _plus_minus(final(group), show), latex=latex),
        Column("95% interval", lambda group: _interval(final(group), show)),
        Column("best", lambda group: _mean(group.metrics[name].best, show)),
        Column(f"last {comparison.last}", lambda group: _mean(group.metrics[name].last, show)),
        Column(f"- {comparison.baseline}", difference),
    ]
    if comparison.target is not None and name == comparison.metrics[0]:
        goal = show(comparison.target)
        columns += [
            Column(f"steps to {goal}", to_target("steps", lambda value: f"{value:.0f}")),
            Column(f"seconds to {goal}", to_target("seconds", lambda value: f"{value:.3g}")),
            Column(f"MB to {goal}", to_target("bytes", lambda value: f"{value / 1e6:.3g}")),
        ]
    return columns


def _of_cost(name: str, shape: Callable[[float], str]) -> _Cell:
    return lambda group: _mean(group.costs[name], shape)


def _number(metric: str) -> Callable[[float], str]:
    """How values of a metric are written."""
    return lambda value: written(metric, value)


def _mean(values: Spread, show: Callable[[float], str]) -> str:
    if math.isnan(values.mean):
        return str(values.representative) if values.not_finite else NOTHING
    return show(values.mean)


def _plus_minus(values: Spread, show: Callable[[float], str]) -> str:
    if math.isnan(values.mean):
        return _mean(values, show)
    return show(values.mean) + ("" if math.isnan(values.std) else f" ± {show(values.std).rstrip('%')}")


def _interval(values: Spread, show: Callable[[float], str]) -> str:
    if math.isnan(values.low):
        return NOTHING
    return f"[{show(values.low).rstrip('%')}, {show(values.high).rstrip('%')}]"


def _ends(values: Spread, show: Callable[[float], str]) -> list[str]:
    return [] if math.isnan(values.low) else [_interval(values, show)]


def _signed(value: float, show: Callable[[float], str]) -> str:
    return ("+" if value >= 0 else "") + show(value)
