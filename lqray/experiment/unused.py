"""Options that no trial of a file uses: `hidden` of a cnn where all models are mlp.

A key that belongs to another name of its section is left out of a trial, so that one `base` serves a sweep over names.
Where no trial has a name that the key belongs to, somebody expects an effect that never comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lqray.experiment.errors import Problem
from lqray.experiment.headline import task_of_data
from lqray.experiment.layout import Layout
from lqray.experiment.options.exchange import BETWEEN_HOSTS, SELDOM
from lqray.experiment.options.own import OwnPart
from lqray.experiment.overrides import SOURCE
from lqray.experiment.parts import OWN, is_own
from lqray.experiment.schema import Trial, flatten
from lqray.experiment.validation import variants
from lqray.experiment.yaml import Document, Path_

_Given = Iterator[tuple[str, Any, Path_]]


def unused_options(layout: Layout, document: Document) -> list[Problem]:
    """What is wrong so with the file, whose names are its own and those of `--set`, and with `--set`."""
    problems: dict[tuple[str, str], Problem] = {}
    for section in Trial.model_fields:
        known = variants(section)
        if not known:
            continue
        selector = next(iter(known.values())).selector
        names, chosen = _names(layout, section, selector), layout.overrides.get(f"{section}.{selector}")
        given = [(key, document.file, document.line_of(path)) for key, _, path in _given(layout, section)]
        given += [(key, SOURCE, None) for full in layout.overrides for key, _, _ in _within(section, full, None, ())]
        for key, file, line in given:
            now = names if chosen is None else {_tag(section, chosen)} | (set() if file == SOURCE else names)
            if problem := _problem(section, key, now, file, line):
                problems.setdefault((file, key), problem)
    for problem in _of_no_exchange(layout, document):
        problems.setdefault((problem.file, problem.key), problem)
    return list(problems.values())


class Usage:
    """Which options of a file the trials that it comes to use: of `unused_options` those are no faults that some
    combination would use, and combinations are excluded."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._used: set[str] = set()
        self._names: dict[str, set[str]] = {}

    def add(self, trial: Trial) -> None:
        """Count one of the trials."""
        for key in flatten(trial.config()):
            if not trial.leaves_out(key):
                words = key.split(".")
                self._used.update(".".join(words[: end + 1]) for end in range(len(words)))
        for section in Trial.model_fields:
            if known := variants(section):
                selector = next(iter(known.values())).selector
                self._names.setdefault(section, set()).add(str(getattr(getattr(trial, section), selector)))

    def unused(self) -> list[str]:
        """A sentence for each option that is given, and that no trial that was added uses."""
        given = {
            f"{section}.{key}"
            for section in Trial.model_fields
            for key, value, _ in _given(self._layout, section)
            if value is not None and key
        }
        chosen = {f"exchange.{owner.key}" for owner in _OWNERS}  # null is a value that is used
        return [f"No trial uses {key}: {self._why(key)}." for key in sorted(given - self._used - chosen)]

    def _why(self, key: str) -> str:
        section, _, option = key.partition(".")
        head = option.partition(".")[0]
        owners = [name for name, cls in variants(section).items() if head in cls.model_fields]
        if owners:
            names = ", ".join(sorted(self._names.get(section, ())))
            return f"it belongs to {', '.join(owners[:8])}, and here are only {names}"
        owner = next((one for one in _OWNERS if head in one.options), None)
        return owner.instead if owner else "it has no effect beside their other options"


def _of_no_exchange(layout: Layout, document: Document) -> Iterator[Problem]:
    """Options of exchanges that are not at every step, or by way of hosts, where no trial has such."""
    given = [(key, value, path) for key, value, path in _given(layout, "exchange")]
    places = [(key, document.file, document.line_of(path)) for key, _, path in given]
    places += [(key, SOURCE, None) for full in layout.overrides for key, _, _ in _within("exchange", full, None, ())]
    for owner in _OWNERS:
        chosen = layout.overrides.get(f"exchange.{owner.key}")
        if owner.wanted(chosen) or any(owner.has(*one) for one in given):
            continue
        for key, file, line in places:
            if key.partition(".")[0] in owner.options:
                found = f"{key!r}, which belongs to exchange.{owner.key}: {owner.instead}"
                yield Problem(file, line, f"exchange.{key}", found, f"with exchange.{owner.example}", "leave it out")


@dataclass(frozen=True)
class _Owner:
    """An option of exchanges whose values others belong to. value: the one, None for any that is given. instead: what
    is without. example: what is allowed."""

    key: str
    value: str | None
    options: tuple[str, ...]
    instead: str
    example: str

    def wanted(self, value: Any) -> bool:
        """Whether a value of it is one that they belong to."""
        return value is not None and self.value in (None, value)

    def has(self, key: str, value: Any, path: Path_) -> bool:
        """Whether what a file sets is, or may come to be, such a value."""
        searched = self.value is None and path[0] == "search"
        return key == self.key and (searched or self.wanted(value))


_OWNERS = (
    _Owner("every", None, SELDOM, "here gradients are exchanged at every step", "every: H, steps"),
    _Owner(
        "reduction",
        "hierarchical",
        BETWEEN_HOSTS,
        "here no reduction is hierarchical",
        "reduction: hierarchical",
    ),
)


def _problem(section: str, key: str, names: set[Any], file: str, line: int | None) -> Problem | None:
    known = variants(section)
    head = key.partition(".")[0]
    owners = [name for name, cls in known.items() if head in cls.model_fields]
    if not owners or not names.issubset(known) or not names.isdisjoint(owners):
        return None  # unknown keys and names are told when a trial is made
    own = sorted({field for name in names for field in known[name].model_fields})
    found = f"{key!r}, which belongs to {', '.join(owners[:8])}: here are only {', '.join(sorted(names))}"
    return Problem(file, line, f"{section}.{key}", found, ", ".join(own), "leave it out")


def _names(layout: Layout, section: str, selector: str) -> set[Any]:
    """Names that trials may have, as hashable values; those of combinations that are excluded among them."""
    names = [value for key, value, path in _given(layout, section) if key == selector and path[0] != "base"]
    swept = f"{section}.{selector}"
    always = bool(layout.blocks) and all(swept in block.matrix for block in layout.blocks)
    if not always and not (layout.search and swept in layout.search.space):
        base = layout.base.get(section)
        names.append(base.get(selector) if isinstance(base, dict) else None)
    if section == "task" and None in names:  # then it is that of the data
        names = [name for name in names if name is not None] + [
            task_of_data(name) for name in _names(layout, "data", "name")
        ]
    return {_tag(section, name) for name in names}


def _tag(section: str, name: Any) -> str:
    """The name that `variants` has: that of lqray's own, or the tag of all others."""
    own = variants(section).get(OWN)
    if own is not None and issubclass(own, OwnPart) and is_own(own.kind, name):
        return OWN
    return name if isinstance(name, str) else repr(name)


def _given(layout: Layout, section: str) -> _Given:
    """(key within the section, value, where it stands) of all that the file sets in it."""
    yield from _spread(layout.base.get(section), ("base", section))
    for block in layout.blocks:
        for key, values in block.matrix.items():
            for index, value in enumerate(values):
                yield from _within(section, key, value, (*block.path, "matrix", key, index))
        for entry in block.include:
            for key, value in entry.values.items():
                yield from _within(section, key, value, (*entry.path, key))
    for key, domain in (layout.search.space if layout.search else {}).items():
        for value in domain.choice or (None,):
            yield from _within(section, key, value, ("search", "space", key))


def _within(section: str, key: str, value: Any, path: Path_) -> _Given:
    head, _, rest = key.partition(".")
    if head != section:
        return
    if rest:
        yield rest, value, path
    else:
        yield from _spread(value, path)


def _spread(value: Any, path: Path_) -> _Given:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item, (*path, key)
