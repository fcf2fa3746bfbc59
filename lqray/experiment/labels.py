"""`labels:` of an experiment file: how tables and figures call its keys and their values. No part of a trial."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lqray.experiment.errors import Problem, did_you_mean, shortened
from lqray.experiment.validation import key_problem, variants
from lqray.experiment.yaml import Path_, dotted

if TYPE_CHECKING:
    from lqray.experiment.yaml import Document

_MOST = 100
_ALLOWED = "a heading, such as bits; names of values, {VALUE: NAME, ...}; or both, {heading: ..., values: {...}}"
_BOTH = {"heading", "values"}
Tell = Callable[..., None]


@dataclass(frozen=True)
class KeyLabels:
    """Of one dotted key. heading: its own, None for the usual one. values: their names, by the text that MLflow keeps
    of them, in the order in which they are shown."""

    heading: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)


def read_labels(given: Mapping[str, Any], problem: Tell) -> dict[str, KeyLabels]:
    """Labels by dotted key. problem: is told (path, found, allowed, hint) of all that is wrong."""
    found = {}
    for key, value in given.items():
        here = ("labels", key)
        if wrong := key_problem(key):
            problem(here, *wrong)
            continue
        heading, values = None, value
        if isinstance(value, str):
            heading, values = value, {}
        elif isinstance(value, dict) and value and value.keys() <= _BOTH:
            heading, values = value.get("heading"), value.get("values", {})
        if not isinstance(values, dict) or value == {}:
            problem(here, shortened(repr(value)), _ALLOWED)
            continue
        names = {(*here, one): name for one, name in values.items()} | ({here: heading} if heading is not None else {})
        for place, name in names.items():
            if not isinstance(name, str) or not name.strip() or len(name) > _MOST:
                problem(place, shortened(repr(name)), f"a text of 1 to {_MOST} characters; numbers in quotes")
        found[key] = KeyLabels(heading, dict(values))
    return found


def label_problems(
    labels: Mapping[str, KeyLabels], taken: Callable[[str], Iterable[Any] | None], document: Document
) -> list[Problem]:
    """Names of values that no trial of a file has. taken: what a dotted key is in some trial, None for anything. Names
    of all methods, data sets and the like are allowed: files may share their labels."""
    problems = []
    for key, own in labels.items():
        values = taken(key) if own.values else None
        if values is None:
            continue
        section, _, option = key.partition(".")
        known = {text_of(one) for one in values}
        by_name = variants(section)
        if by_name and option == next(iter(by_name.values())).selector:
            known |= by_name.keys()
        same = {canonical(one) for one in known}
        for value in own.values:
            if canonical(value) not in same:
                here = ("labels", key, "values") if document.data["labels"][key].keys() <= _BOTH else ("labels", key)
                place: Path_ = (*here, value)
                allowed = ", ".join(sorted(known)[:30])
                line, found = document.line_of(place), f"{value!r}, which no trial of this file has"
                problems.append(Problem(document.file, line, dotted(place), found, allowed, did_you_mean(value, known)))
    return problems


def text_of(value: Any) -> str:
    """A parameter as MLflow keeps it."""
    return value if isinstance(value, str) else json.dumps(value)


def canonical(text: str) -> str:
    """Equal for texts of one number: 1 and 1.0."""
    try:
        return repr(float(text))
    except ValueError:
        return text
