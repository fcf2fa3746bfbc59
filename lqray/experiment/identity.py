"""Trial identity: a hash of content, stable while the schema grows.

What is hashed is the resolved trial without the fields that still have their *founding value*: the value that gives the
behaviour from before the field existed. For most fields that is the default, so a new field with a default changes no
id. When a default changes later, the field declares its old one,

    momentum: float = Field(default=0.9, json_schema_extra={"founding": 0.0})

and old files, which now mean something else, get new ids instead of aliasing old runs.
`tests/experiment/founding_values.json` pins the founding values; a change that forgets the declaration fails there.

A field that cannot change the result, such as the folder of a dataset, stays out of the identity whatever its value:

    root: str | None = Field(default=None, json_schema_extra={"identity": False})
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

_MISSING = object()


@cache
def outside_identity(model: type[BaseModel]) -> frozenset[str]:
    """Names of the fields of `model` that cannot change a result and enter no id."""
    extras = {name: info.json_schema_extra for name, info in model.model_fields.items()}
    return frozenset(
        name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("identity") is False
    )


@cache
def founding_values(model: type[BaseModel]) -> dict[str, Any]:
    """Field name to founding value for the fields of `model` that have one (those with a default)."""
    values: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if name in outside_identity(model):
            continue
        extra = info.json_schema_extra
        if isinstance(extra, dict) and "founding" in extra:
            values[name] = extra["founding"]
        elif info.default is not PydanticUndefined and not isinstance(info.default, BaseModel):
            values[name] = info.default
    return values


def canonical(model: BaseModel) -> dict[str, Any]:
    """The fields of `model`, nested, without those at their founding value, those outside the identity, and sections
    that this empties."""
    founding, outside = founding_values(type(model)), outside_identity(type(model))
    kept: dict[str, Any] = {}
    for name, value in model.__dict__.items():
        if name not in type(model).model_fields or name in outside:
            continue
        if isinstance(value, BaseModel):
            nested = canonical(value)
            if nested:
                kept[name] = nested
        elif _plain(value) != _plain(founding.get(name, _MISSING)):
            kept[name] = _plain(value)
    return kept


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def canonical_json(model: BaseModel) -> str:
    """The canonical form as JSON with sorted keys and no spaces."""
    return json.dumps(canonical(model), sort_keys=True, separators=(",", ":"), allow_nan=False)


def trial_id(model: BaseModel) -> str:
    """First 16 hexadecimal digits of the SHA-256 of `canonical_json`.

    A section that has its own part of it at hand (`canonical_json`, a cached property) need not make it again: trials
    of a grid share most of their sections.
    """
    founding, outside = founding_values(type(model)), outside_identity(type(model))
    parts = []
    for name in sorted(type(model).model_fields):
        value = getattr(model, name)
        if name in outside:
            continue
        if isinstance(value, BaseModel):
            text = getattr(value, "canonical_json", None) or canonical_json(value)
            if text != "{}":
                parts.append(f'"{name}":{text}')
        elif _plain(value) != _plain(founding.get(name, _MISSING)):
            parts.append(
                f'"{name}":{json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)}'
            )
    return hashlib.sha256(f"{{{','.join(parts)}}}".encode()).hexdigest()[:16]
