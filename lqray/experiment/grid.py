"""From a YAML file to trials: the grid language.

    base:  settings that every trial starts from
    search: adds draws to every combination of the sweep (`sampling`)
    sweep: a list of blocks; the experiment is their union, in order, each trial once
      - matrix:  {dotted.key: [values], ...}     all combinations, the last key varying fastest
        exclude: [{dotted.key: value, ...}]      drops combinations that have all these values
        include: [{dotted.key: value, ...}]      extends combinations, or adds one, as in a GitHub Actions matrix:
            an entry is merged into every combination whose matrix values it does not contradict; one that fits none
            becomes a combination of its own. Includes are applied after excludes.

Expansion is lazy: combinations are made one by one, and nothing but the ids already seen, 16 bytes each, is kept.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lqray.experiment.budgets import budgeted, drawn_once
from lqray.experiment.errors import ExperimentError, Problem, UnknownTrialError, did_you_mean
from lqray.experiment.headline import ACCURACY, Headline, headline_of
from lqray.experiment.id_set import IdSet
from lqray.experiment.labels import label_problems
from lqray.experiment.layout import Block, Layout, read_layout
from lqray.experiment.naming import Namer, given_values
from lqray.experiment.overrides import SOURCE, overridden
from lqray.experiment.sampling import corner, draws, rounded
from lqray.experiment.schema import Resources, Search, Storage, Tracking, Trial, flatten
from lqray.experiment.unused import unused_options
from lqray.experiment.validation import explain
from lqray.experiment.yaml import Document, Path_, load, parse

_MOST_SECTIONS = 10_000


@dataclass(frozen=True)
class Setting:
    """One dotted key set to a value by a block; `path` is where in the file."""

    key: str
    value: Any
    path: Path_


@dataclass(frozen=True)
class NamedTrial:
    """A trial and its name, which is made of what varies in its experiment."""

    name: str
    trial: Trial


@dataclass(frozen=True)
class Experiment:
    """A validated experiment file. Its trials are validated as they are made; `validate` makes and drops them all."""

    document: Document
    layout: Layout

    @property
    def name(self) -> str:
        """Name of the experiment, also in MLflow."""
        return self.layout.name

    @property
    def resources(self) -> Resources:
        """What each trial runs on."""
        return self.layout.resources

    @property
    def tracking(self) -> Tracking:
        """Where runs are recorded."""
        return self.layout.tracking

    @property
    def storage(self) -> Storage:
        """Where checkpoints and logs are kept."""
        return self.layout.storage

    @property
    def search(self) -> Search | None:
        """What is searched beside the sweep, and how trials are stopped early; every metric is named."""
        search = self.layout.search
        return search.judged_by(self.headline) if search else None

    @cached_property
    def headline(self) -> Headline:
        """By which metric the trials are judged: that of the first."""
        search = self.layout.search
        first = self.suggested(corner(search, False)) if search and self.adaptive else next(self.trials(), None)
        return headline_of(first.trial.flat()) if first else ACCURACY

    def suggested(self, values: Mapping[str, Any]) -> NamedTrial:
        """The trial of one draw of an adaptive search: dotted keys to values. Raises ExperimentError."""
        assert self.layout.search is not None
        space = self.layout.search.space
        settings = tuple(
            Setting(key, rounded(space[key], value), ("search", "space", key)) for key, value in values.items()
        )
        trial = self._trial(settings)
        return NamedTrial(self._namer.name(trial), trial)

    @property
    def adaptive(self) -> bool:
        """Whether its trials depend on results: `trials` then gives none, `suggested` makes them."""
        return self.layout.search is not None and self.layout.search.adaptive

    @cached_property
    def _sections(self) -> dict[tuple[str, str], Any]:
        return {}

    @cached_property
    def _namer(self) -> Namer:
        return Namer(self.layout)

    @property
    def axes(self) -> tuple[str, ...]:
        """Dotted keys that vary over the experiment, in the order of the file."""
        return self._namer.axes

    @property
    def axis_values(self) -> Mapping[str, tuple[Any, ...]]:
        """What each of `axes` takes; of a search by Optuna, the corners of its space."""
        return self._namer.values

    def trials(self) -> Iterator[NamedTrial]:
        """The trials, in the order of the file, each once.

        Raises ExperimentError at the first combination that is not a valid trial.
        """
        seen, names = IdSet(), IdSet()
        for settings in self.combinations():
            trial = self._trial(settings)
            if seen.add(trial.id):
                name = self._namer.name(trial)
                if not names.add(hashlib.sha256(name.encode()).hexdigest()[:16]):
                    name = f"{name}-{trial.id[:6]}"
                yield NamedTrial(name, trial)

    @property
    def most_trials(self) -> int:
        """More it cannot have; those of the base and of an adaptive search are not counted. Makes none."""
        swept = sum(math.prod(map(len, one.matrix.values())) + len(one.include) for one in self.layout.blocks) or 1
        search = self.layout.search
        if search is None or not search.space:
            return swept
        if search.sampler == "grid":
            return swept * math.prod(len(domain.choice or ()) for domain in search.space.values())
        return swept * search.samples

    def find(self, chosen: str | None) -> NamedTrial:
        """The trial of a name or id (or its beginning); without one, the only trial.

        Raises UnknownTrialError, with the names that there are, unless it is exactly one.
        """
        shown: list[str] = []
        found: list[NamedTrial] = []
        for named in self.trials():
            shown.append(named.name)
            if chosen == named.name or chosen == named.trial.id:
                return named
            if chosen is None or (len(chosen) >= 4 and named.trial.id.startswith(chosen)):
                found.append(named)
        if len(found) == 1:
            return found[0]
        allowed = ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")
        what = f"{len(found)} trials" if chosen is None or found else f"no trial {chosen!r}"
        hint = did_you_mean(chosen, shown) if chosen else None
        raise UnknownTrialError(
            f"{self.document.file} has {what}; choose one of: {allowed}, or its id "
            f"(`lqray expand {shlex.quote(str(self.document.file))}`)" + (f"; {hint}" if hint else "")
        )

    def combinations(self) -> Iterator[tuple[Setting, ...]]:
        """What each combination of the sweep sets on top of the base; equal trials may still come more than once."""
        swept: Iterable[tuple[Setting, ...]] = (
            itertools.chain.from_iterable(map(_combinations, self.layout.blocks)) if self.layout.blocks else [()]
        )
        search = self.layout.search
        for settings in swept:
            if search is None:
                yield settings
                continue
            for draw in draws(search):
                yield settings + tuple(Setting(key, value, ("search", "space", key)) for key, value in draw.items())

    def _trial(self, settings: tuple[Setting, ...]) -> Trial:
        """Sections that a combination sets as another one did are taken from there, validated; most are."""
        groups: dict[str, list[Setting]] = {}
        for setting in settings:
            groups.setdefault(setting.key.partition(".")[0], []).append(setting)
        keys = {name: repr([(one.key, one.value) for one in group]) for name, group in groups.items()}
        keys["task"] = f"{keys.get('task', '')} {keys.get('data', '')}"  # by default it is that of the data
        set_last = [key.partition(".")[0] for key in self.layout.overrides]
        given = {**self.layout.base, **groups, **dict.fromkeys(set_last)}
        ready = {name: self._sections.get((name, keys.get(name, ""))) for name in given}
        if all(section is not None for section in ready.values()):
            # Sections that are valid each may not go together; what follows says where that was set.
            with suppress(ValidationError):
                return Trial.model_validate(ready)
        config = self.layout.base
        for setting in settings:
            config = with_value(config, setting.key.split("."), setting.value)
        for key, value in self.layout.overrides.items():
            config = with_value(config, key.split("."), value)
        try:
            trial = Trial.model_validate(config)
        except ValidationError as error:
            raise ExperimentError(self._explained(error, settings)) from None
        if len(self._sections) > _MOST_SECTIONS:
            self._sections.clear()
        for name in ready:
            # What a trial says of its workers depends on its method; a raw value is as good as a section.
            value = config[name] if name == "workers" else getattr(trial, name)
            self._sections[name, keys.get(name, "")] = value
        return trial

    def _explained(self, error: ValidationError, settings: Sequence[Setting]) -> list[Problem]:
        problems = explain(error, self.document, settings)
        return [
            replace(one, file=SOURCE, line=None)
            if any(one.key == key or one.key.startswith((f"{key}.", f"{key}[")) for key in self.layout.overrides)
            else one
            for one in problems
        ]


def read_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file; its first trial is validated, later ones as they are made. overrides: `--set`. An option
    that no trial uses is an error here, and none in `experiment_from_text`, which reads what was launched before.

    Raises ExperimentError with file, line, key, what was found and what is allowed.
    """
    experiment = _experiment(load(path), overrides)
    if problems := unused_options(experiment.layout, experiment.document) + _label_problems(experiment):
        raise ExperimentError(problems)
    return experiment


def _label_problems(experiment: Experiment) -> list[Problem]:
    """Labels of values that no trial has."""
    layout = experiment.layout
    if not layout.labels:
        return []
    space = layout.search.space if layout.search else {}
    given = given_values(layout, None)
    first = None if experiment.adaptive else next(experiment.trials(), None)
    default = first.trial.flat() if first else {}

    def taken(key: str) -> list[Any] | None:
        if key in space and not space[key].choice:
            return None
        return [*given.get(key, ()), *(values[key] for values in (flatten(layout.base), default) if key in values)]

    return label_problems(layout.labels, taken, experiment.document)


def experiment_from_text(text: str, file: str) -> Experiment:
    """The same for the text of an experiment file; `file` is what errors call it."""
    return _experiment(parse(text, file))


def _experiment(document: Document, overrides: Sequence[str] = ()) -> Experiment:
    layout = overridden(read_layout(document), overrides)
    if layout.search and layout.search.each:
        swept = Experiment(document, drawn_once(layout)).trials()
        layout = budgeted(layout, document, (named.trial for named in swept))
    experiment = Experiment(document, layout)
    if experiment.search and experiment.adaptive:
        for high in (False, True):
            experiment.suggested(corner(experiment.search, high))
    else:
        next(experiment.trials(), None)
    return experiment


def with_value(config: dict[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    """A copy of nested `config` with the value at the path `keys` set; mappings merge, anything else replaces."""
    copy = dict(config)
    head, *rest = keys
    below = copy.get(head)
    if rest:
        copy[head] = with_value(below if isinstance(below, dict) else {}, rest, value)
    elif isinstance(value, dict) and isinstance(below, dict):
        for key, item in value.items():
            below = with_value(below, [key], item)
        copy[head] = below
    else:
        copy[head] = value
    return copy


def _combinations(block: Block) -> Iterator[tuple[Setting, ...]]:
    used = [False] * len(block.include)
    for combination in _matrix(block):
        values = {setting.key: setting.value for setting in combination}
        if any(_contains(values, entry.values) for entry in block.exclude):
            continue
        extra: dict[str, Setting] = {}
        for index, entry in enumerate(block.include):
            if all(same(values[key], value) for key, value in entry.values.items() if key in values):
                used[index] = True
                for key, value in entry.values.items():
                    extra[key] = Setting(key, value, (*entry.path, key))
        own = tuple(extra.pop(setting.key, setting) for setting in combination)
        yield own + tuple(extra.values())
    for entry, was_used in zip(block.include, used, strict=True):
        if not was_used:
            yield tuple(Setting(key, value, (*entry.path, key)) for key, value in entry.values.items())


def _matrix(block: Block) -> Iterator[tuple[Setting, ...]]:
    if not block.matrix:
        return iter(())
    axes = [
        [Setting(key, value, (*block.path, "matrix", key, index)) for index, value in enumerate(values)]
        for key, values in block.matrix.items()
    ]
    return itertools.product(*axes)


def _contains(values: dict[str, Any], subset: dict[str, Any]) -> bool:
    return all(key in values and same(values[key], value) for key, value in subset.items())


def same(left: Any, right: Any) -> bool:
    """Equality of YAML values: as Python's, but true is not 1; 1 and 1.0 are the same number."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)
