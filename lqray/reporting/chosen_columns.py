"""`lqray report --columns`: which columns of a table are shown, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

from lqray.experiment.errors import nearest
from lqray.reporting.comparison import Comparison, Group
from lqray.reporting.labels import Labels
from lqray.reporting.savings_table import SAVED
from lqray.reporting.selection import UnknownKeyError, params_of
from lqray.reporting.tables import ESSENTIAL, NOTHING, Column

VARIES = "(varies)"
OF_TARGETS = (
    *(f"{what}_to_target" for what in ("steps", "seconds", "mb")),
    *(word for word in SAVED if "target" in word),
)


def chosen_columns(
    columns: Sequence[Column], wanted: Sequence[str], comparison: Comparison, labels: Labels
) -> list[Column]:
    """Those of `wanted`, each once, in its order. A word is that of a column, of every metric; METRIC.WORD, of one; a
    parameter, or its ending: rows whose runs differ in it say so. Raises UnknownKeyError."""
    found = [column for word in wanted for column in _named(word, columns, comparison, labels)]
    unique = {(one.metric, one.key, one.word): one for one in found}
    return list(unique.values())


def _named(word: str, columns: Sequence[Column], comparison: Comparison, labels: Labels) -> list[Column]:
    exact = [one for one in columns if word in (one.word, one.key)]
    if exact:
        return [_kept(one) for one in exact]
    metric, _, what = word.rpartition(".")
    of_metric = [
        one for one in columns if metric and one.word == what and f"/{one.metric}".endswith(f"/{metric.lstrip('/')}")
    ]
    if of_metric:
        return [_kept(one) for one in of_metric]
    params = params_of(record for group in comparison.groups for record in group.records)
    keys = sorted(key for key in params if key == word or key.endswith(f".{word}"))
    if len(keys) == 1:
        return [_of_parameter(keys[0], labels)]
    if keys:
        raise UnknownKeyError(f"found column {word!r}, which may be {' or '.join(keys)}; allowed: one of them")
    words = list(dict.fromkeys(one.word for one in columns))
    if word in OF_TARGETS:
        raise UnknownKeyError(f"found column {word!r} without --target; allowed: both")
    near = nearest(word, words) or nearest(word, params) or nearest(word, [key.rpartition(".")[2] for key in params])
    hint = f"did you mean {near!r}? " if near else ""
    raise UnknownKeyError(f"found column {word!r}; {hint}allowed: {', '.join(words)}, or a parameter")


def _kept(column: Column) -> Column:
    """What was asked for is not left out for want of room."""
    return Column(**{**vars(column), "priority": max(column.priority, ESSENTIAL)})


def _of_parameter(key: str, labels: Labels) -> Column:
    """Of a parameter that does not tell groups apart."""

    def cell(group: Group) -> str:
        values = {one.params.get(key) for one in group.records}
        if len(values) > 1:
            return VARIES
        value = next(iter(values), None)
        return NOTHING if value is None else labels.value(key, value)

    ending = key.rpartition(".")[2]
    return Column(labels.heading(key), cell, key=key, id=ending, priority=ESSENTIAL, wraps=True)
