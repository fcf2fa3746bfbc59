"""What parts of a user's own have in their sections: a reference, and options that the part itself knows."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, Field, model_validator

from lqray.experiment import parts
from lqray.experiment.options.section import Variant

_OPTION = re.compile(r"[^\W\d][\w-]*")
_MOST_LEVELS = 20


def _json(value: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError for what is not plain data, or has keys that a dotted key cannot name."""
    _check_json(value, 0)
    return value


def _check_json(value: Any, level: int) -> None:
    if level > _MOST_LEVELS:
        raise ValueError(f"at most {_MOST_LEVELS} levels of lists and mappings")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not _OPTION.fullmatch(key):
                raise ValueError(f"keys of letters, digits, _ and -, the first a letter or _; found {key!r}")
            _check_json(item, level + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_json(item, level + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"finite numbers; found {value!r}")
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"words, numbers, true, false, null, lists and mappings; found {value!r}")


def is_free(section: type[BaseModel], key: str) -> bool:
    """Whether below a key of a section there is whatever a part of a user's own takes."""
    return _json in (getattr(extra, "func", None) for extra in section.model_fields[key].metadata)


FreeOptions = Annotated[dict[str, Any], AfterValidator(_json)]
"""Options of a part of a user's own, plain data; the part says which there are (`part_options`)."""


class OwnPart(Variant):
    """A part of a user's own: its reference, or the name of an entry point, which becomes the reference; and options,
    which are looked at when the part is loaded. To be combined with a section's class."""

    kind: ClassVar[str]
    options: FreeOptions = Field(default={})
    """Whatever the part takes."""

    def given(self) -> dict[str, Any]:
        """What the part gets, before its own class of options has a look."""
        return dict(self.options)

    @model_validator(mode="before")
    @classmethod
    def _with_reference(cls, values: Any) -> Any:
        name = values.get(cls.selector) if isinstance(values, dict) else None
        reference = parts.reference_of(cls.kind, name)
        return values if reference in (None, name) else {**values, cls.selector: reference}
