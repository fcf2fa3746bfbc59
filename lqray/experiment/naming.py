"""Names of trials: made of what varies in their experiment, short enough for a table, safe as a file name."""

from __future__ import annotations

import hashlib
import itertools
import re
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from lqray.experiment.layout import Layout
from lqray.experiment.sampling import corner, draws
from lqray.experiment.schema import Trial, flatten

_MAX_LENGTH = 60
_MOST_PARTS = 10_000
_MOST_DRAWS = 1000
"""Of a longer search the first draws, and its choices, show what varies."""
_MISSING = object()


class Namer:
    """Names the trials of one experiment. `axes` are the dotted keys that vary, in the order of the file."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        seen = given_values(layout, _MOST_DRAWS)
        self.axes = tuple(key for key, values in seen.items() if any(repr(v) != repr(values[0]) for v in values))
        self._labels = {key: _label(key, self.axes) for key in self.axes}
        words = {key: {v for v in values if isinstance(v, str)} for key, values in seen.items() if key in self.axes}
        self._alone = {
            key
            for key, own in words.items()
            if own and not any(own & other for another, other in words.items() if another != key)
        }
        self._parts: dict[tuple[str, str], str] = {}

    @cached_property
    def values(self) -> dict[str, tuple[Any, ...]]:
        """What each of `axes` takes, in the order of the file, each once."""
        seen = given_values(self._layout, None)
        return {key: tuple({repr(value): value for value in seen[key]}.values()) for key in self.axes}

    def name(self, trial: Trial) -> str:
        """Name of one trial of this experiment; axes that mean nothing to it (bits of full_precision,
        `exchange.outer` without `every`) are left out."""
        axes = [key for key in self.axes if not trial.leaves_out(key)]
        parts = [part for key in axes if (part := self._part(key, _value(trial, key)))]
        name = "-".join(parts) or trial.quantizer.method
        if len(name) > _MAX_LENGTH:
            name = f"{name[: _MAX_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return name

    def _part(self, key: str, value: Any) -> str:
        """What the value of an axis adds to a name: a word stands for itself, where no other axis has it; a switch is
        named when it is on."""
        if value is _MISSING or value is False:
            return ""
        known = self._parts.get((key, repr(value)))
        if known is not None:
            return known
        label = self._labels[key]
        if value is True:
            text = label
        else:
            text = _text(value) if key in self._alone and isinstance(value, str) else f"{label}{_text(value)}"
        text = re.sub(r"[^A-Za-z0-9_.,+-]", "_", text)
        if len(self._parts) < _MOST_PARTS:
            self._parts[key, repr(value)] = text
        return text


def given_values(layout: Layout, most: int | None) -> dict[str, list[Any]]:
    """Values that a file gives to each dotted key that it may vary; of a search's draws the first `most`, or all."""
    base = flatten(layout.base)
    seen: dict[str, list[Any]] = {}

    def add(key: str, value: Any) -> None:
        for leaf, item in flatten({key: value}).items():
            seen.setdefault(leaf, []).append(item)

    for block in layout.blocks:
        for key, values in block.matrix.items():
            for value in values:
                add(key, value)
        for entry in block.include:
            for key, value in entry.values.items():
                add(key, value)
    search = layout.search
    if search:
        # All that a grid takes are its choices: there is no need to go through their combinations.
        most = _MOST_DRAWS if search.sampler == "grid" else most
        drawn = [corner(search, high) for high in (False, True)] if search.adaptive else draws(search)
        count = 0
        for draw in itertools.islice(drawn, most):
            count += 1
            for key, value in draw.items():
                add(key, value)
        if count == most:
            for key, domain in search.space.items():
                for value in domain.choice or ():
                    add(key, value)
    searched = set(search.space) if search else set()
    for key, values in seen.items():
        if key in searched:
            continue
        everywhere = all(any(name == key or key.startswith(f"{name}.") for name in b.matrix) for b in layout.blocks)
        if not everywhere:
            values.append(base.get(key))
    return seen


def _value(trial: Trial, key: str) -> Any:
    value: Any = trial
    for part in key.split("."):
        if isinstance(value, dict):
            value = value.get(part, _MISSING)
        elif isinstance(value, BaseModel) and part in type(value).model_fields:
            value = getattr(value, part)
        else:
            return _MISSING
    return value


def _label(key: str, axes: tuple[str, ...]) -> str:
    """The shortest ending of a dotted key that no other axis shares."""
    parts = key.split(".")
    for length in range(1, len(parts) + 1):
        ending = ".".join(parts[-length:])
        if sum(other == ending or other.endswith(f".{ending}") for other in axes) == 1:
            return ending
    return key


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(_thousands(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _thousands(value: Any) -> str:
    """As `_text`, with 2000 as 2k."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value and value % 1000 == 0
    return f"{value // 1000}k" if whole else _text(value)
