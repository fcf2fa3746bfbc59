"""Parameters that runs have recorded, which are text: those of before an option was there have none of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from lqray.experiment.headline import task_of_data
from lqray.experiment.identity import founding_values
from lqray.experiment.parts import OWN, is_reference
from lqray.experiment.schema import Trial
from lqray.experiment.validation import variants


def founding_text(params: Mapping[str, str], key: str) -> str | None:
    """What a run without a parameter ran with, as it would be recorded: the value that gives the behaviour of before
    the option was there. None for options that its method, model, ... do not have, or that always had to be given."""
    section, _, field = key.partition(".")
    if section not in Trial.model_fields:
        return None
    return _founding(section, _name(params, section)).get(field)


def filled(params: Mapping[str, str], keys: Iterable[str]) -> dict[str, str]:
    """The same, with those of `keys` that are missing and have a founding value."""
    missing = {key: text for key in keys if key not in params and (text := founding_text(params, key)) is not None}
    return {**params, **missing}


@cache
def fields_of(section: str) -> frozenset[str]:
    """Of all its names."""
    known: list[Any] = list(variants(section).values()) or [Trial.model_fields[section].annotation]
    return frozenset(field for cls in known for field in cls.model_fields)


def _name(params: Mapping[str, str], section: str) -> str | None:
    """What chooses the class of a section."""
    known = variants(section)
    if not known:
        return None
    name = params.get(f"{section}.{next(iter(known.values())).selector}")
    return task_of_data(params.get("data.name")) if section == "task" and name is None else name


@cache
def _founding(section: str, name: str | None) -> Mapping[str, str]:
    known = variants(section)
    cls: Any = known.get(OWN if is_reference(name) else name or "")
    if not known:
        cls = Trial.model_fields[section].annotation
    if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
        return {}
    return {key: _text(value) for key, value in founding_values(cls).items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
