"""pydantic's errors in the terms of the file: line, dotted key, what was found, what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol, get_args

from pydantic import BaseModel, ValidationError

from lqray.experiment import parts
from lqray.experiment.errors import Problem, did_you_mean, shortened
from lqray.experiment.options.own import is_free
from lqray.experiment.options.section import Variant
from lqray.experiment.schema import Trial
from lqray.experiment.yaml import Document, Path_, dotted

_Loc = tuple[str | int, ...]
_MOST_PROBLEMS = 100


class _Setting(Protocol):
    @property
    def key(self) -> str: ...
    @property
    def path(self) -> Path_: ...


def explain(error: ValidationError, document: Document, settings: Sequence[_Setting]) -> list[Problem]:
    """Problems of a trial that is not valid. settings: what a block set on the base."""
    problems = []
    for detail in error.errors(include_url=False)[:_MOST_PROBLEMS]:
        loc, found, allowed, hint = _describe(dict(detail), Trial)
        key = dotted(loc)
        line = _line(key, loc, document, settings)
        problems.append(Problem(document.file, line, key, found, allowed, hint))
    return problems


def explain_section(error: ValidationError, cls: type[BaseModel], document: Document, path: Path_) -> list[Problem]:
    """Problems of a plain section (resources, tracking) that failed to validate."""
    problems = []
    for detail in error.errors(include_url=False)[:_MOST_PROBLEMS]:
        loc, found, allowed, hint = _describe(dict(detail), cls)
        line = document.line_of((*path, *loc))
        problems.append(Problem(document.file, line, dotted((*path, *loc)), found, allowed, hint))
    return problems


def problems_of(error: ValidationError, cls: type[BaseModel]) -> list[tuple[str, str, str, str | None]]:
    """(dotted key, found, allowed, hint) of each problem of plain data that are not a `cls`; of no file's."""
    details = error.errors(include_url=False)[:_MOST_PROBLEMS]
    described = [_describe(dict(detail), cls) for detail in details]
    return [(dotted(loc), found, allowed, hint) for loc, found, allowed, hint in described]


def key_problem(key: str) -> tuple[str, str, str | None] | None:
    """What is wrong with a dotted key of a matrix: (found, allowed, hint), or None when some trial has such a key."""
    words = key.split(".")
    classes: list[type[BaseModel]] = [Trial]
    for depth, part in enumerate(words):
        known = sorted({name for cls in classes for name in cls.model_fields})
        if part not in known:
            before = ".".join(words[:depth])
            where = f"keys of {before}" if before else "keys of a trial"
            choices = [f"{before}.{name}" if before else name for name in known]
            allowed = f"{where}: {', '.join(choices)}" if known else f"no key below {before}"
            return f"the unknown key {shortened(key)!r}", allowed, did_you_mean(".".join(words[: depth + 1]), choices)
        classes = [cls for cls in classes if part in cls.model_fields]
        if any(is_free(cls, part) for cls in classes):
            return None
        classes = [model for cls in classes for model in _models(cls, part)]
    return None


def _models(cls: type[BaseModel], field: str) -> list[type[BaseModel]]:
    """The section classes that a field may hold: none for plain values, several for a section chosen by name."""
    found: list[type[BaseModel]] = []

    def walk(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        for argument in get_args(annotation):
            walk(argument)

    walk(cls.model_fields[field].annotation)
    return found


@cache
def variants(field: str) -> dict[str, type[Variant]]:
    """Of a trial's section that is chosen by name: the class of each name; of any other field nothing."""
    found = {_tag_of(Trial, field, member): member for member in _models(Trial, field)}
    return {tag: member for tag, member in found.items() if tag is not None and issubclass(member, Variant)}


def _line(key: str, loc: _Loc, document: Document, settings: Sequence[_Setting]) -> int | None:
    """Line of the setting that gave `key` its value: the last one of the block, else the base, else the section."""
    for setting in reversed(settings):
        if key == setting.key or key.startswith((f"{setting.key}.", f"{setting.key}[")):
            below = loc[len(setting.key.split(".")) :]
            return document.line_of((*setting.path, *below))
    return document.line_of(("base", *loc))


def _describe(detail: dict[str, Any], root: type[BaseModel]) -> tuple[_Loc, str, str, str | None]:
    """(location without pydantic's union tags, found, allowed, hint) of one pydantic error."""
    loc, cls = _strip_tags(detail["loc"], root)
    kind, context, value = detail["type"], detail.get("ctx", {}), detail.get("input")
    found = _shown(value)
    if kind == "combination":  # of several sections: says itself which key, and what was found
        return tuple(context["key"].split(".")), context["found"], context["allowed"], None
    if kind == "extra_forbidden":
        known = sorted({*cls.model_fields, *getattr(cls, "siblings", ())})
        return loc, f"the unknown key {shortened(str(loc[-1]))!r}", ", ".join(known), did_you_mean(str(loc[-1]), known)
    if kind == "missing":
        return loc, "nothing", f"a value: {loc[-1]!r} is required", None
    if kind == "union_tag_invalid":
        known = [name.strip().strip("'") for name in context["expected_tags"].split(",")]
        selector = _selector(root, loc)
        tag = str(context["tag"])
        return (*loc, selector), f"the unknown name {shortened(tag)!r}", _names(known), _meant(tag, known)
    if kind == "union_tag_not_found":
        selector = _selector(root, loc)
        if isinstance(value, dict):
            return (*loc, selector), "nothing", f"a value: {selector!r} is required", None
        return loc, found, f"a mapping with {selector!r}", None
    allowed = _allowed(kind, context, detail["msg"])
    return loc, found, allowed, None


def _names(known: Sequence[str]) -> str:
    """Names as they are told: the tag of a user's own parts is how these are written."""
    own = f", or one of your own, written {parts.OWN}" if parts.OWN in known else ""
    return ", ".join(name for name in known if name != parts.OWN) + own


def _meant(name: str, known: Sequence[str]) -> str | None:
    dotted_name = ":".join(name.rpartition(".")[::2])
    if parts.OWN in known and parts.is_reference(dotted_name):
        return f"an attribute is written after a colon: {dotted_name}"
    return did_you_mean(name, [each for each in known if each != parts.OWN])


def _selector(root: type[BaseModel], loc: _Loc) -> str:
    return str(getattr(_models(root, str(loc[0]))[0], "selector", "name"))


def _strip_tags(loc: _Loc, root: type[BaseModel]) -> tuple[_Loc, type[BaseModel]]:
    """A pydantic location without the tags of discriminated unions, and the class of the section that it ends in."""
    kept: list[str | int] = []
    cls = root
    skip = False
    for index, part in enumerate(loc):
        if skip:
            skip = False
            continue
        kept.append(part)
        below = _models(cls, str(part)) if part in cls.model_fields else []
        if below and index + 1 < len(loc):
            tagged = next((m for m in below if _tag_of(cls, str(part), m) == loc[index + 1]), None)
            skip = tagged is not None
            cls = tagged or below[0]
    return tuple(kept), cls


def _tag_of(cls: type[BaseModel], field: str, member: type[BaseModel]) -> str | None:
    def walk(annotation: Any) -> str | None:
        arguments = get_args(annotation)
        if arguments and arguments[0] is member:
            return next((extra.tag for extra in arguments[1:] if hasattr(extra, "tag")), None)
        return next((tag for argument in arguments if (tag := walk(argument))), None)

    info = cls.model_fields[field]
    if info.annotation is member:  # a union of one: pydantic keeps its tag beside the annotation
        return next((extra.tag for extra in info.metadata if hasattr(extra, "tag")), None)
    return walk(info.annotation)


_NUMBERS = {
    "greater_than": ("gt", "a number above {}"),
    "greater_than_equal": ("ge", "a number of at least {}"),
    "less_than": ("lt", "a number below {}"),
    "less_than_equal": ("le", "a number of at most {}"),
}
_LENGTHS = {
    "too_short": ("min_length", "a list of at least {}"),
    "too_long": ("max_length", "a list of at most {}"),
    "string_too_short": ("min_length", "a word of at least {} character"),
    "string_too_long": ("max_length", "a word of at most {} characters"),
}
_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a word",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _allowed(kind: str, context: dict[str, Any], message: str) -> str:
    if kind in _NUMBERS:
        key, text = _NUMBERS[kind]
        return text.format(context[key])
    if kind in _TYPES:
        return _TYPES[kind]
    if kind == "literal_error":
        return str(context["expected"])
    if kind in _LENGTHS:
        key, text = _LENGTHS[kind]
        return text.format(context[key])
    return message.removeprefix("Value error, ")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a mapping"
    return shortened(repr(value), 80)
