"""Whether the data of trials are there, looked at once before the first of them begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.grid import NamedTrial
from lqray.experiment.options.data import DataOptions
from lqray.training.data_check import look_at_data
from lqray.training.files import CorruptDataError, MissingDataError

DATA_ERRORS = (MissingDataError, CorruptDataError, UnfitTrialError, OSError)
"""What `look_at_data` raises where trials would fail."""


@dataclass
class NeededData:
    """Data that `count` trials need, the one called `first` before the others."""

    options: DataOptions
    first: str
    count: int = 0

    @property
    def who(self) -> str:
        """The trials, in words."""
        return f"{self.first} and {self.count - 1:,} more" if self.count > 1 else self.first


def needed_data(trials: Iterable[NamedTrial]) -> list[NeededData]:
    """The data of trials, those of the same options once, in the order of the trials."""
    found: dict[str, NeededData] = {}
    for named in trials:
        options = named.trial.data
        found.setdefault(options.model_dump_json(), NeededData(options, named.name)).count += 1
    return list(found.values())


def lacking(trials: Iterable[NamedTrial], fetch: bool) -> list[str]:
    """All that is missing or broken on this machine, and the trials that need it. fetch: see `look_at_data`."""
    problems = []
    for needed in needed_data(trials):
        try:
            look_at_data(needed.options, fetch)
        except DATA_ERRORS as error:
            problems.append(f"trial {needed.who}: {error}")
    return problems


def check_data(trials: Iterable[NamedTrial]) -> None:
    """Download what the trials may download, and raise UnfitTrialError, which says all that is missing or broken on
    this machine."""
    if problems := lacking(trials, fetch=True):
        raise UnfitTrialError("\n".join([*problems, "No trial was begun."]))
