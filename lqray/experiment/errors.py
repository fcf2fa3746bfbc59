"""Errors that say where, what was found, what is allowed and, where one can guess, what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
            f"{place}: {self.key}" if self.key else place,
            f"  found:   {self.found}",
            f"  allowed: {self.allowed}",
        ]
        if self.hint:
            lines.append(f"  hint:    {self.hint}")
        return "\n".join(lines)


class ExperimentError(ValueError):
    """An experiment file that cannot become trials. `problems` lists everything found wrong, in file order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UnknownTrialError(ValueError):
    """A name or id that is not that of exactly one trial."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, or None when none looks alike."""
    matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The hint of an error about an unknown name: the nearest known one, or None."""
    match = nearest(name, known)
    return f"did you mean {match!r}?" if match else None
