"""What a trial's result comes from beside its configuration: the code of its parts, the files of its data. Recorded as
tags of its run, and compared with what is here now."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lqray.experiment.digests import is_other, with_last
from lqray.experiment.part_files import parts_digest
from lqray.experiment.schema import Trial
from lqray.store.tags import DATA, PARTS
from lqray.training.data_files import data_digest

NAMES = {PARTS: "code", DATA: "data"}
"""What the tags are digests of, in a word."""


def origins(trial: Trial) -> dict[str, str]:
    """The tags as of now; without that of data which are read from no files, or from files that are not here."""
    data = data_digest(trial.data)
    return {PARTS: parts_digest(trial)} | ({DATA: data} if data else {})


def continued(old: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """The tags of a run that goes on: all that it had, in order."""
    return {tag: with_last(old[tag], now[tag]) if tag in now else old[tag] for tag in NAMES if tag in old}


def others(tags: Mapping[str, str], trial: Trial, data: Callable[[Trial], str | None] | None = None) -> list[str]:
    """What of a run was another than is here now, in words of NAMES; [] for what cannot be compared. data: finds the
    digest of a trial's data, as `DataOfNow` does."""
    found = [NAMES[PARTS]] if PARTS in tags and is_other(tags[PARTS], parts_digest(trial)) else []
    if DATA in tags and (now := (data or DataOfNow())(trial)) and is_other(tags[DATA], now):
        found.append(NAMES[DATA])
    return found


class DataOfNow:
    """Digests of trials' data as they are now, each found once: files are looked at, thousands of them for a text."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def __call__(self, trial: Trial) -> str | None:
        options = trial.data.model_dump_json()
        if options not in self._known:
            self._known[options] = data_digest(trial.data)
        return self._known[options]
