"""The outline of an experiment file, checked: which sections there are and that every block is well formed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from lqray.experiment.errors import ExperimentError, Problem, did_you_mean, shortened
from lqray.experiment.labels import KeyLabels, read_labels
from lqray.experiment.options.budget import with_pairs
from lqray.experiment.options.section import Section
from lqray.experiment.sampling import number_of_draws
from lqray.experiment.schema import Resources, Search, Storage, Tracking, Trial
from lqray.experiment.validation import explain_section, key_problem
from lqray.experiment.yaml import Document, Path_, dotted

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\Z")
_SECTIONS = ("name", "base", "sweep", "resources", "tracking", "storage", "search", "labels")
CLAIMS = "lqray-leases"
"""The MLflow experiment that holds claims on trials; no experiment of trials is called so."""
_MOST_PROBLEMS = 100
"""After so many nobody reads on; each costs a search for what was meant."""
MOST_COMBINATIONS = 10_000_000
"""Planning a million of them takes half a minute."""
_BLOCK_KEYS = ("matrix", "include", "exclude")


@dataclass(frozen=True)
class Entry:
    """An element of `include` or `exclude`: dotted keys to values, and where it stands."""

    values: dict[str, Any]
    path: Path_


@dataclass(frozen=True)
class Block:
    """One block of `sweep`; `path` is where it stands."""

    matrix: dict[str, list[Any]]
    include: tuple[Entry, ...]
    exclude: tuple[Entry, ...]
    path: Path_


@dataclass(frozen=True)
class Layout:
    """The sections of an experiment file."""

    name: str
    base: dict[str, Any]
    blocks: tuple[Block, ...]
    resources: Resources
    tracking: Tracking
    storage: Storage
    search: Search | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of a trial, set last in every trial (`--set`)."""
    labels: dict[str, KeyLabels] = field(default_factory=dict)
    """How tables and figures call dotted keys and their values; outside every trial."""


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []

    def problem(self, path: Path_, found: str, allowed: str, hint: str | None = None) -> None:
        line = self.document.line_of(path)
        self.problems.append(Problem(self.document.file, line, dotted(path), found, allowed, hint))
        if len(self.problems) > _MOST_PROBLEMS:
            raise ExperimentError(self.problems)

    def mapping(self, value: Any, path: Path_, allowed: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self.problem(path, describe(value), allowed)
        return {}

    def only_keys(self, value: dict[str, Any], known: Sequence[str], path: Path_) -> None:
        for key in value:
            if key not in known:
                self.problem((*path, key), f"the unknown key {key!r}", ", ".join(known), did_you_mean(key, known))

    def section(self, cls: type[Section], value: Any, path: Path_) -> Any:
        try:
            return cls.model_validate(self.mapping(value, path, f"a mapping with {', '.join(cls.model_fields)}"))
        except ValidationError as error:
            self.problems.extend(explain_section(error, cls, self.document, path))
            return cls()

    def search(self, value: Any, blocks: Sequence[Block]) -> Search | None:
        try:
            search = Search.model_validate(self.mapping(value, ("search",), "a mapping"))
        except ValidationError as error:
            self.problems.extend(explain_section(error, Search, self.document, ("search",)))
            return None
        for key in search.space:
            here = ("search", "space", key)
            self.trial_key(key, here)
            if any(key in block.matrix for block in blocks):
                self.problem(here, f"{key!r}, which is an axis of the sweep, too", "each key in one of them")
        self.no_overlap(list(search.space), ("search", "space"))
        for key in search.each:
            self.trial_key(key, ("search", "each"))
            if key in search.space:
                self.problem(("search", "each"), f"{key!r}, which is searched, too", "each key in one of them")
        if search.each and (search.adaptive or search.early_stopping):
            found = "sampler: optuna" if search.adaptive else "early_stopping"
            hint = "leave it out, or run a file for each group"
            self.problem(
                ("search", "each"), f"each beside {found}, which looks at all trials as one", "fixed draws", hint
            )
        if search.adaptive and blocks:
            found = "a sweep beside sampler: optuna, which runs one study"
            self.problem(("search", "sampler"), found, "random or grid beside a sweep, or no sweep")
        return search

    def block(self, value: Any, path: Path_) -> Block:
        value = self.mapping(value, path, "a mapping with matrix, include, exclude")
        self.only_keys(value, _BLOCK_KEYS, path)
        if not value.keys() & {"matrix", "include"}:
            self.problem(path, "neither matrix nor include", "at least one of them")
        matrix = self.matrix(value["matrix"], (*path, "matrix")) if "matrix" in value else {}
        include = self.entries(value.get("include", []), (*path, "include"))
        exclude = self.entries(value.get("exclude", []), (*path, "exclude"))
        for entry in exclude:
            for key in entry.values:
                if key not in matrix:
                    hint = did_you_mean(key, matrix)
                    self.problem(
                        (*entry.path, key),
                        f"{key!r}, which is no axis of this matrix",
                        ", ".join(matrix) or "no exclude of a matrix without axes",
                        hint,
                    )
        for entry in include:
            self.no_overlap([*matrix, *(key for key in entry.values if key not in matrix)], entry.path)
        return Block(matrix, include, exclude, path)

    def matrix(self, value: Any, path: Path_) -> dict[str, list[Any]]:
        value = self.mapping(value, path, "a mapping of dotted keys to lists of values")
        if not value:
            self.problem(
                path, "an empty matrix", "at least one `key: [value, ...]`", "leave `sweep` out for a single trial"
            )
        for key, choices in value.items():
            self.trial_key(key, (*path, key))
            if not isinstance(choices, list) or not choices:
                found = "an empty list" if choices == [] else describe(choices)
                self.problem((*path, key), found, "a list of one or more values", "write [value] for a single one")
                continue
            seen: set[object] = set()
            for index, choice in enumerate(choices):
                if _hashable(with_pairs(key, choice)) in seen:
                    found = f"{describe(choice)} a second time"
                    self.problem((*path, key, index), found, "each value of an axis once: trials are never repeated")
                seen.add(_hashable(with_pairs(key, choice)))
        self.no_overlap(list(value), path)
        return {
            key: [with_pairs(key, choice) for choice in choices]
            for key, choices in value.items()
            if isinstance(choices, list)
        }

    def entries(self, value: Any, path: Path_) -> tuple[Entry, ...]:
        if not isinstance(value, list):
            self.problem(path, describe(value), "a list of mappings of dotted keys to values")
            return ()
        entries = []
        for index, item in enumerate(value):
            here = (*path, index)
            item = self.mapping(item, here, "a mapping of dotted keys to values")
            for key in item:
                self.trial_key(key, (*here, key))
            entries.append(Entry({key: with_pairs(key, each) for key, each in item.items()}, here))
        return tuple(entries)

    def size(self, blocks: Sequence[Block], search: Search | None) -> None:
        """Whether all combinations could ever be run."""
        swept = sum(
            math.prod(map(len, block.matrix.values())) * bool(block.matrix) + len(block.include) for block in blocks
        )
        drawn = max(number_of_draws(search), search.trials or 0) if search and not search.adaptive else 1
        count = (swept if blocks else 1) * drawn
        if count > MOST_COMBINATIONS:
            key = ("sweep",) if swept > 1 else ("search",)
            self.problem(key, f"{count:,} combinations", f"at most {MOST_COMBINATIONS:,} in a file")

    def trial_key(self, key: str, path: Path_) -> None:
        wrong = key_problem(key)
        if wrong:
            self.problem(path, *wrong)

    def no_overlap(self, keys: Sequence[str], path: Path_) -> None:
        for key in keys:
            for other in keys:
                if other.startswith(f"{key}."):
                    self.problem((*path, other), f"both {key!r} and {other!r}", "keys none of which contains another")


def read_layout(document: Document) -> Layout:
    """Check the outline of an experiment file. Raises ExperimentError with everything wrong in it."""
    reader = _Reader(document)
    data = document.data
    if not isinstance(data, dict):
        reader.problem((), describe(data), f"a mapping with {', '.join(_SECTIONS)}")
        raise ExperimentError(reader.problems)
    reader.only_keys(data, _SECTIONS, ())
    name = data.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        found = describe(name) if "name" in data else "no name"
        reader.problem(("name",), found, "up to 100 letters, digits, '_', '.', '-', the first a letter or digit")
        name = "?"
    elif name.lower() == CLAIMS:
        reader.problem(("name",), f"{name!r}, where lqray keeps which launch runs which trial", "any other name")
    base = reader.mapping(data.get("base", {}), ("base",), f"a mapping with {', '.join(Trial.model_fields)}")
    base = {key: with_pairs(key, value) for key, value in base.items()}
    blocks: tuple[Block, ...] = ()
    if "sweep" in data:
        if isinstance(data["sweep"], list) and data["sweep"]:
            blocks = tuple(reader.block(block, ("sweep", i)) for i, block in enumerate(data["sweep"]))
        else:
            hint = "leave `sweep` out for a single trial"
            reader.problem(("sweep",), describe(data["sweep"]), "a list of blocks (`- matrix: ...`)", hint)
    resources = reader.section(Resources, data.get("resources", {}), ("resources",))
    tracking = reader.section(Tracking, data.get("tracking", {}), ("tracking",))
    storage = reader.section(Storage, data.get("storage", {}), ("storage",))
    search = None
    if "search" in data:
        search = reader.search(data["search"], blocks)
    labels = read_labels(
        reader.mapping(data.get("labels", {}), ("labels",), "a mapping of dotted keys"), reader.problem
    )
    reader.size(blocks, search)
    if reader.problems:
        raise ExperimentError(sorted(reader.problems, key=lambda problem: problem.line or 0))
    return Layout(name, base, blocks, resources, tracking, storage, search, labels=labels)


def describe(value: Any) -> str:
    """A value as it is named in errors."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return f"the list {shortened(repr(value))}" if value else "an empty list"
    return shortened(repr(value))


def _hashable(value: Any) -> object:
    """A key equal for equal YAML values: 1 and 1.0 are one number, true is not 1."""
    if isinstance(value, list):
        return ("list", *map(_hashable, value))
    if isinstance(value, dict):
        return ("mapping", frozenset((key, _hashable(item)) for key, item in value.items()))
    return (isinstance(value, bool), value)
