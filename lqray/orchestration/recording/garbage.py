"""Checkpoints that nothing needs any more: of trials that are over, and of attempts that a later one has replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lqray.orchestration.worker.fencing import own_name
from lqray.store.client import client_of
from lqray.store.outage import patiently
from lqray.store.runs import Run, read_runs, run_of
from lqray.store.tags import ATTEMPT, EARLY, FOLDER, MODEL_STATE
from lqray.training.checkpoint import BEST, newest_first
from lqray.training.storage import open_folder

_TAGS = (ATTEMPT, EARLY, FOLDER, MODEL_STATE)
_SET_ASIDE = ("broken*.pt", "foreign*.pt", "unused-*.pt")


@dataclass(frozen=True)
class Garbage:
    """Files of one run that can go. name: of its trial. why: finished, stopped early, or replaced by a later attempt.
    folder: its address. sizes: bytes of each file, by name."""

    name: str
    run_id: str
    why: str
    folder: str
    sizes: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(self.sizes.values())


def garbage(uri: str, experiment: str, root: str | None = None, set_aside: bool = False) -> list[Garbage]:
    """What can go of an experiment, in the order in which its runs began.

    Of a run that is over all checkpoints but best.pt, or, where there is none, the last; nothing while a model is still
    to be made of them, or could not be. Of one that a later attempt has replaced, which is over, best.pt, too. Nothing
    of a run that is RUNNING, or that a launch may continue. root: the folder of all trials, where the experiment's file
    names it; else each run says where its own was. set_aside: also what was renamed broken-, foreign- or unused-.
    Raises StoreError, StoreAwayError, StorageError, OSError.
    """
    runs = read_runs(uri, experiment, _TAGS, (), params=False)
    latest: dict[str, Run] = {}
    for run in runs:
        if run.trial_id not in latest or run.order > latest[run.trial_id].order:
            latest[run.trial_id] = run
    found = [_of_run(run, latest[run.trial_id], experiment, root, set_aside) for run in runs]
    return [one for one in found if one]


def removed(uri: str, found: Sequence[Garbage]) -> Iterator[tuple[Garbage, int]]:
    """Remove it, run by run: (run, bytes that are free again). A run that is no more as it was, since a launch has
    taken it up meanwhile, keeps everything. Raises as `garbage`."""
    client = client_of(uri)
    for one in found:
        run = run_of(patiently(lambda one=one: client.get_run(one.run_id)))  # type: ignore[misc]
        if run is None or not (run.over or (one.why == _REPLACED and run.status != "RUNNING")):
            yield one, 0
            continue
        folder = open_folder(one.folder)
        for name in one.sizes:
            folder.remove(name)
        yield one, one.size


_REPLACED = "replaced"


def _of_run(run: Run, latest: Run, experiment: str, root: str | None, set_aside: bool) -> Garbage | None:
    why = _why(run, latest)
    where = _folder_of(run, experiment, root)
    if why is None or where is None:
        return None
    folder = open_folder(where)
    names = newest_first(folder)
    if why != _REPLACED:
        names = [name for name in names if name != BEST] if BEST in names else names[1:]
    for pattern in _SET_ASIDE if set_aside else ():
        names += folder.names(pattern)
    sizes: dict[str, int] = {}
    for name in names:
        try:
            sizes[name] = folder.size(name)
        except OSError:  # it has gone by itself, or is no file
            continue
    return Garbage(run.name, run.run_id, why, where, sizes) if sizes else None


def _why(run: Run, latest: Run) -> str | None:
    """Why a run's checkpoints can go; None where they cannot."""
    if run.run_id != latest.run_id:
        return _REPLACED if latest.over and run.status != "RUNNING" else None
    model = run.tags.get(MODEL_STATE, "")
    if not run.over or model == "pending" or model.startswith("failed"):
        return None
    return "stopped early" if run.stopped_early else "finished"


def _folder_of(run: Run, experiment: str, root: str | None) -> str | None:
    """None where a run does not say it, or something else than a trial's folder of this experiment: tags can be written
    by others."""
    address = run.tags.get(FOLDER, "").rstrip("/")
    name = own_name(address, run.trial_id)
    if not name:
        return None
    if root is not None:
        return f"{root}/{name}"
    return address if address.rpartition("/")[0].endswith(f"/{experiment}") else None
