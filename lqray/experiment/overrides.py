"""`--set KEY=VALUE`: what the command line changes in an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from lqray.experiment.errors import ExperimentError, Problem, did_you_mean, shortened
from lqray.experiment.layout import Layout
from lqray.experiment.options.budget import with_pairs
from lqray.experiment.options.section import Section
from lqray.experiment.schema import Resources, Storage, Tracking, Trial
from lqray.experiment.validation import explain_section, key_problem
from lqray.experiment.yaml import parse

SOURCE = "--set"
_SECTIONS: dict[str, type[Section]] = {"resources": Resources, "storage": Storage, "tracking": Tracking}


def overridden(layout: Layout, overrides: Sequence[str]) -> Layout:
    """The layout with `key=value` texts applied: keys of a trial, set in every trial whatever base and sweep say, or of
    resources, storage and tracking. Values are YAML. Raises ExperimentError."""
    problems: list[Problem] = []
    settings: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        section, _, option = key.partition(".")
        if not equals:
            problems.append(Problem(SOURCE, None, text, "no '='", "KEY=VALUE, such as schedule.iterations=100"))
        elif section in _SECTIONS:
            known = list(_SECTIONS[section].model_fields)
            if option in known:
                document = parse(value, f"{SOURCE} {shortened(text)}")
                layout = _with_option(layout, section, option, document.data, problems)
            else:
                choices = [f"{section}.{name}" for name in known]
                hint = did_you_mean(key, choices)
                problems.append(Problem(SOURCE, None, key, f"the unknown key {key!r}", ", ".join(choices), hint))
        elif wrong := key_problem(key):
            found, allowed, hint = wrong
            if section not in Trial.model_fields:
                choices = [*Trial.model_fields, *_SECTIONS]
                allowed, hint = f"keys below {', '.join(choices)}", did_you_mean(section, choices)
            problems.append(Problem(SOURCE, None, key, found, allowed, hint))
        else:
            settings[key] = with_pairs(key, parse(value, f"{SOURCE} {shortened(text)}").data)
    if problems:
        raise ExperimentError(problems)
    # An axis that is overridden has one value; where the file excludes that value, it still does.
    blocks = tuple(replace(block, matrix=_collapsed(block.matrix, settings)) for block in layout.blocks)
    return replace(layout, blocks=blocks, overrides=settings)


def _collapsed(matrix: dict[str, list[Any]], settings: dict[str, Any]) -> dict[str, list[Any]]:
    return {key: [settings[key]] if key in settings else values for key, values in matrix.items()}


def _with_option(layout: Layout, section: str, option: str, value: Any, problems: list[Problem]) -> Layout:
    old = getattr(layout, section)
    cls = _SECTIONS[section]
    raw = old.model_dump() | {option: value}
    try:
        chosen: Any = {section: cls.model_validate(raw)}
        return replace(layout, **chosen)
    except ValidationError as error:
        document = parse("", SOURCE)
        for problem in explain_section(error, cls, document, (section,)):
            problems.append(replace(problem, line=None))
        return layout
