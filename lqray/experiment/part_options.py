"""Options of a part of a user's own, looked at once the part is loaded.

A part says which options it takes by a pydantic class, `OPTIONS`: an attribute of the object that its reference names,
or of the object's module. Without one it is given the mapping as it stands in the file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from lqray.experiment.errors import PartError, Problem, did_you_mean
from lqray.experiment.validation import problems_of


def part_options(section: str, reference: str, part: object, options: Mapping[str, Any]) -> Any:
    """What a part is given for its options: an instance of its OPTIONS, or a mapping of its own where it has none.

    section: the key that the options are below, such as `model`. Raises PartError in the terms of the file's keys.
    """
    declared = getattr(part, "OPTIONS", None)
    if declared is None:
        declared = getattr(sys.modules.get(reference.partition(":")[0]), "OPTIONS", None)
    if declared is None:
        return dict(options)
    if not (isinstance(declared, type) and issubclass(declared, BaseModel)):
        raise PartError(f"{reference}: found OPTIONS = {declared!r}; allowed: a class made from pydantic.BaseModel")
    problems = _unknown(declared, options)
    try:
        checked = declared.model_validate(dict(options))
    except ValidationError as error:
        problems = problems or problems_of(error, declared, dict(options))
    if problems:
        told = [
            str(Problem(reference, None, f"{section}.options.{key}".rstrip("."), found, allowed, hint))
            for key, found, allowed, hint in problems
        ]
        raise PartError("\n".join(told))
    return checked


def _unknown(declared: type[BaseModel], options: Mapping[str, Any]) -> list[tuple[str, str, str, str | None]]:
    """pydantic ignores keys that a class does not know unless it says so; a misspelt word is an error."""
    if declared.model_config.get("extra") == "allow":
        return []
    aliases = {info.alias for info in declared.model_fields.values() if info.alias}
    allowed = sorted({*declared.model_fields, *aliases})
    return [
        (key, f"the unknown key {key!r}", ", ".join(allowed) or "no options", did_you_mean(key, allowed))
        for key in options
        if key not in allowed
    ]
