"""Options of a part of a user's own, looked at once the part is loaded.

A part says which options it takes by a pydantic class, `OPTIONS`: an attribute of the object that its reference names,
or of the object's module. Without one it is given the mapping as it stands in the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ValidationError

from lqray.experiment import parts
from lqray.experiment.errors import PartError, Problem, did_you_mean
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.options.own import OwnPart
from lqray.experiment.options.quantizer import OwnMethodOptions, by_bits
from lqray.experiment.validation import problems_of

if TYPE_CHECKING:
    from lqray.experiment.schema import Trial


@dataclass(frozen=True)
class Chosen:
    """A part of a user's own in a trial. section: of the file, such as `model`. options: that it is given; those of
    `above` are keys of the section itself, the others stand below its `options`."""

    kind: str
    section: str
    reference: str
    options: Mapping[str, Any]
    above: frozenset[str] = frozenset()

    @property
    def what(self) -> str:
        """As messages name it."""
        return f"{self.section} {self.reference}"

    def load(self) -> tuple[Any, Any]:
        """The part, imported, and what it is given for its options. Raises PartError."""
        part = parts.load(self.kind, self.reference)
        return part, part_options(self.section, self.reference, part, self.options, self.above)


def chosen_part(section: str, options: BaseModel) -> Chosen | None:
    """The user's own part that a section chooses; None for one of lqray's."""
    if isinstance(options, OwnPart):
        given = options.given()
        name: str = getattr(options, options.selector)
        return Chosen(options.kind, section, name, given, frozenset(given) - frozenset(options.options))
    if isinstance(options, ExchangeOptions) and parts.is_reference(options.reduction):
        return Chosen("reductions", section, options.reduction, options.options)
    return None


def own_parts(trial: BaseModel) -> Iterator[Chosen]:
    """All parts of a trial that are a user's own; a method once for each of its numbers of bits."""
    for section in type(trial).model_fields:
        options = getattr(trial, section)
        each = by_bits(options).values() if isinstance(options, OwnMethodOptions) else [options]
        for one in each:
            if isinstance(one, BaseModel) and (chosen := chosen_part(section, one)):
                yield chosen


def check_parts(trial: Trial) -> None:
    """Import a trial's parts and metrics that are a user's own, and look at their options. Raises PartError."""
    for chosen in own_parts(trial):
        chosen.load()
    for reference in trial.metrics:
        load_metric(reference)


def load_metric(reference: str) -> Callable[..., Any]:
    """A metric of a user's own, imported. Raises PartError."""
    metric = parts.load("metrics", reference)
    if not callable(metric):
        raise PartError(
            f"metric {reference}: found {type(metric).__name__} {metric!r:.80}; allowed: a function of (outputs, "
            "targets)"
        )
    return cast("Callable[..., Any]", metric)


def part_options(
    section: str, reference: str, part: object, options: Mapping[str, Any], above: Collection[str] = ()
) -> Any:
    """What a part is given for its options: an instance of its OPTIONS, or a mapping of its own where it has none.

    section: the key that the options are below, such as `model`. above: options that are keys of the section itself.
    Raises PartError in the terms of the file's keys.
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
        problems = problems or problems_of(error, declared)
    if problems:
        places = [section if key in above else f"{section}.options" for key, *_ in problems]
        told = [
            str(Problem(reference, None, f"{place}.{key}".rstrip("."), found, allowed, hint))
            for place, (key, found, allowed, hint) in zip(places, problems, strict=True)
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
