"""Errors that say where, what was found, what is allowed and, where one can guess, what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_MOST_CHARACTERS = 200
_MOST_PROBLEMS = 20


def shortened(text: str, most: int = _MOST_CHARACTERS) -> str:
    """At most so many characters of a text that somebody else wrote, its beginning and its end."""
    if len(text) <= most:
        return text
    kept = (most - 5) // 2
    return f"{text[:kept]} ... {text[-kept:]}"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an experiment file.

    file, line: where (line counts from 1; None when the file has no such line, for example a missing key).
    key: dotted path inside the file or the trial. found: what stands there. allowed: what may stand there.
    hint: how to fix it, when that can be guessed.
    """

    file: str
    line: int | None
    key: str
    found: str
    allowed: str
    hint: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line is not None else self.file
        lines = [
            f"{place}: {shortened(self.key)}" if self.key else place,
            f"  found:   {shortened(self.found, 2 * _MOST_CHARACTERS)}",
            f"  allowed: {self.allowed}",
        ]
        if self.hint:
            lines.append(f"  hint:    {self.hint}")
        return "\n".join(lines)


class ExperimentError(ValueError):
    """An experiment file that cannot become trials. `problems` lists everything found wrong, in file order; of very
    many, the message shows the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        shown = [str(problem) for problem in self.problems[:_MOST_PROBLEMS]]
        if len(self.problems) > _MOST_PROBLEMS:
            shown.append(f"... and more: {len(self.problems) - _MOST_PROBLEMS} of what was found is not shown")
        super().__init__("\n".join(shown))


class UnfitTrialError(ValueError):
    """A trial whose options are valid each, and which cannot be trained all the same: its data do not fit its network,
    or the like. Says which option, what was found and what is allowed."""


class PartError(UnfitTrialError):
    """A part of a user's own that is not found, cannot be imported, or is not what its trial takes it for. Says which,
    what was found, what is allowed and how to fix it."""


class UnknownTrialError(ValueError):
    """A name or id that is not that of exactly one trial."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, or None when none looks alike, or `name` is longer than any name."""
    if len(str(name)) > _MOST_CHARACTERS:
        return None
    matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The hint of an error about an unknown name: the nearest known one, or None."""
    match = nearest(name, known)
    return f"did you mean {match!r}?" if match else None
