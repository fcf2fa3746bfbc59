"""A comparison as a table: its columns, in Markdown and LaTeX. See `fitting` for the terminal, `machine` for CSV and
JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lqray.experiment.foreign import in_latex, in_line, in_markdown
from lqray.experiment.headline import three_digits, written, written_beside, written_whole
from lqray.reporting.comparison import Comparison, Group
from lqray.reporting.intervals import Spread
from lqray.reporting.labels import PLAIN, Labels
from lqray.reporting.savings_table import bold_notes, savings_cell, savings_columns, savings_notes
from lqray.reporting.selection import METHOD, TRIAL
from lqray.reporting.targets import some_of, target_note

NOTHING = "-"
ESSENTIAL = 95
"""Columns of this priority are never left out: a row without them says nothing."""
_Cell = Callable[[Group], str]


@dataclass(frozen=True)
class Column:
    """A column: its title and how a group fills it. latex: where that differs. id: by which `--columns` chooses it, by
    default its title, a word. key: the parameter, where it is one. metric: that it is of, where it is of one. priority:
    where there is no room for all, those of least are left out. wraps: whether a cell may be broken between words."""

    title: str
    cell: _Cell
    numeric: bool = True
    latex: _Cell | None = None
    id: str = ""
    key: str = ""
    metric: str = ""
    priority: int = 50
    wraps: bool = False

    @property
    def word(self) -> str:
        """By which it is chosen."""
        return self.id or re.sub(r"[^a-z0-9]+", "_", self.title.lower()).strip("_")


def columns_of(comparison: Comparison, labels: Labels = PLAIN) -> list[Column]:
    """All columns that say something of at least one group."""
    return [
        one
        for one in all_columns(comparison, labels)
        if one.key or one.word == "runs" or any(one.cell(group) != NOTHING for group in comparison.groups)
    ]


def all_columns(comparison: Comparison, labels: Labels = PLAIN) -> list[Column]:
    """Those that there may be, also such as have nothing to say."""
    runs = Column("runs", lambda group: group.runs, id="runs", priority=90, wraps=True)
    found = [column for name in comparison.metrics for column in _metric_columns(name, comparison, labels)]
    bits, seconds = "bits_per_coordinate", "seconds_per_step"
    found += [
        Column("bits per coordinate", _of_cost(bits, lambda value: f"{value:.3f}"), id=bits, priority=65),
        Column("MB sent", _of_cost("bytes_sent", lambda value: three_digits(value / 1e6)), id="mb_sent", priority=55),
        Column("seconds per step", _of_cost(seconds, lambda value: f"{value:.4f}"), id=seconds, priority=40),
        *(
            Column(one.title, partial(savings_cell, what=one.what), id=one.id, priority=one.priority)
            for one in savings_columns(comparison)
        ),
    ]
    return [*key_columns(comparison, labels), runs, *found]


def key_columns(comparison: Comparison, labels: Labels = PLAIN) -> list[Column]:
    """Those that say which group a row is."""
    return [_key_column(key, comparison.keys, labels) for key in comparison.keys]


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


def notes(comparison: Comparison, labels: Labels = PLAIN, columns: Sequence[Column] = ()) -> list[str]:
    """What columns mean, in sentences. columns: those of the table; all without any."""
    words = {one.word for one in columns or all_columns(comparison, labels)}
    said = []
    if words & {"final", "interval"}:
        said.append(
            "±: standard deviation over runs; [ ]: 95% interval of the mean (Student's t; of shares on the logit)."
        )
    said += savings_notes(comparison, labels.value(METHOD, comparison.baseline or ""), words)
    if any(group.not_finite for group in comparison.groups):
        said.append("Not finite: finished with a metric that is NaN or infinite; these runs enter none of its numbers.")
    if comparison.target is not None and any("target" in word for word in words):
        said.append(target_note(comparison.metrics[0], comparison.target, comparison.smooth))
    return said


def _against(comparison: Comparison, labels: Labels) -> str:
    """What differences from the baseline are called."""
    return f"- {labels.value(METHOD, comparison.baseline)}" if comparison.baseline else "difference"


def _key_column(key: str, keys: Sequence[str], labels: Labels) -> Column:
    ending = key.rpartition(".")[2]
    word = key if sum(other.rpartition(".")[2] == ending for other in keys) > 1 else ending

    def cell(group: Group) -> str:
        value = group.keys[key]
        return NOTHING if value is None else labels.value(key, value)

    numeric = key not in (METHOD, TRIAL)
    title = labels.heading(key, keys)
    return Column(title, cell, numeric, id=word, key=key, priority=ESSENTIAL + 5, wraps=True)


def _metric_columns(name: str, comparison: Comparison, labels: Labels) -> list[Column]:
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
        mean = written_whole(name, found.spread.mean, 3)
        ends = [] if math.isnan(found.spread.low) else [_ends(found.spread, mean)]
        return " ".join([("+" if found.spread.mean >= 0 else "") + mean, *ends]) + p

    def to_target(what: str, shape: Callable[[float], str]) -> _Cell:
        def cell(group: Group) -> str:
            measured = group.metrics[name]
            if not measured.reached:
                return NOTHING
            mean = measured.to_target[what].mean
            return NOTHING if math.isnan(mean) else shape(mean) + some_of(measured.reached, len(group.finished))

        return cell

    first = name == comparison.metrics[0]
    columns = [
        Column(
            title, lambda group: _plus_minus(final(group), show), True, latex, "final", priority=95 if first else 88
        ),
        Column("95% interval", lambda group: _interval(final(group), show), id="interval", priority=70),
        Column("best", lambda group: _mean(group.metrics[name].best, show), id="best", priority=60),
        Column(f"last {comparison.last}", lambda group: _mean(group.metrics[name].last, show), id="last", priority=30),
        Column(_against(comparison, labels), difference, id="difference", priority=80),
    ]
    if comparison.target is not None and first:
        goal = written(name, comparison.target)
        steps = to_target("steps", lambda value: f"{value:.0f}")
        seconds = to_target("seconds", three_digits)
        megabytes = to_target("bytes", lambda value: three_digits(value / 1e6))
        columns += [
            Column(f"steps to {goal}", steps, id="steps_to_target", priority=86),
            Column(f"seconds to {goal}", seconds, id="seconds_to_target", priority=85),
            Column(f"MB to {goal}", megabytes, id="mb_to_target", priority=84),
        ]
    return [replace(one, metric=name) for one in columns]


def _of_cost(name: str, shape: Callable[[float], str]) -> _Cell:
    return lambda group: _mean(group.costs[name], shape)


def _number(metric: str) -> Callable[[float], str]:
    """How values of a metric are written."""
    return lambda value: written_whole(metric, value)


def _mean(values: Spread, show: Callable[[float], str]) -> str:
    if math.isnan(values.mean):
        return str(values.representative) if values.not_finite else NOTHING
    return show(values.mean)


def _plus_minus(values: Spread, show: Callable[[float], str]) -> str:
    mean = _mean(values, show)
    return mean if math.isnan(values.std) else f"{mean} ± {written_beside(mean, values.std)}"


def _interval(values: Spread, show: Callable[[float], str]) -> str:
    return NOTHING if math.isnan(values.low) else _ends(values, _mean(values, show))


def _ends(values: Spread, mean: str) -> str:
    return f"[{written_beside(mean, values.low)}, {written_beside(mean, values.high)}]"
