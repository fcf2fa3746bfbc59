"""The description of an experiment that the MLflow UI shows."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from lqray.experiment.foreign import in_line, in_markdown, in_markdown_code
from lqray.experiment.headline import written
from lqray.experiment.standing import Standing

STATES = ("finished", "running", "failed", "killed", "not begun")
_MOST = 4900  # MLflow keeps 5,000 characters of a tag of an experiment
_MOST_VALUES, _MOST_AXES, _MOST_METHODS = 12, 12, 20
_QUESTION, _VALUES, _NAME, _COMMAND = 900, 100, 60, 300


def sweep_summary(standing: Standing) -> str:
    """In Markdown: what the sweep asks, what it varies, how its trials stand, the best of each method, and how to see
    more. At most 4,900 characters; what is cut ends in an ellipsis. Lists, no tables: the UI gives cells no space."""
    total = sum(standing.counts.values())
    parts = [_quoted(standing.question)] if standing.question else []
    if standing.axes:
        shown = list(standing.axes)[:_MOST_AXES]
        lines = [f"- {in_markdown_code(_cut(key, _NAME))}: {_values(standing, key)}" for key in shown]
        more = len(standing.axes) - _MOST_AXES
        parts.append("\n".join([*lines, *([f"- … {more} more axes"] if more > 0 else [])]))
    counts = ", ".join(f"{standing.counts[state]} {state}" for state in STATES if standing.counts.get(state))
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(standing.time))
    parts.append(f"**{total} {'trial' if total == 1 else 'trials'}**{f': {counts}' if counts else ''} ({clock})")
    if standing.best:
        chosen, metric = standing.best[:_MOST_METHODS], standing.headline.metric
        lines = [
            f"- **{one.method}** {written(metric, one.value)}: {in_markdown_code(one.name)}, of {one.finished} finished"
            for one in chosen
        ]
        parts.append(f"Best {metric.replace('/', ' ')} of each method:\n\n" + "\n".join(lines))
    name = _cut(shlex.quote(in_line(standing.experiment).replace("`", "'")), _COMMAND)
    command = in_markdown_code(_cut(standing.command, _COMMAND))
    parts.append(f"```\nlqray report {name}\nlqray plot {name} --kind curves\n```\n\nlaunched by {command}")
    return _cut("\n\n".join(parts), _MOST)


def _values(standing: Standing, key: str) -> str:
    values = standing.axes[key]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numbers and (standing.searched or len(values) > _MOST_VALUES):
        how = "searched" if standing.searched else f"{len(values)} values"
        return f"{how}, {_text(min(values))} to {_text(max(values))}"
    shown = ", ".join(_text(value) for value in values[:_MOST_VALUES])
    more = f", … {len(values) - _MOST_VALUES} more" if len(values) > _MOST_VALUES else ""
    return in_markdown(_cut(shown, _VALUES)) + more


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in _cut(text, _QUESTION).splitlines())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 2].rstrip() + " …"
