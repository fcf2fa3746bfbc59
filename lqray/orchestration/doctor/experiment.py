"""What `lqray doctor FILE` looks at: what a launch of the file looks at before its first trial, all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.grid import Experiment, NamedTrial
from lqray.experiment.sampling import corner
from lqray.experiment.schema import Trial
from lqray.experiment.store import StorageError, storage_address
from lqray.orchestration.doctor.local import Finding, writable
from lqray.orchestration.launch import runs_elsewhere
from lqray.orchestration.launchers.placement import PlacementError
from lqray.orchestration.launchers.ray.cluster import ClusterError
from lqray.orchestration.plan.data import DATA_ERRORS, NeededData, needed_data
from lqray.orchestration.plan.feasible import check_places, check_trials
from lqray.training.data_check import look_at_data
from lqray.training.storage import check_folder, open_folder

MOST = 100_000
"""Trials of a file that are looked at."""
_IN_THE_FILE = "correct it in the experiment file; `lqray expand FILE` lists its trials"


def trials_of(experiment: Experiment) -> list[NamedTrial]:
    """The first `MOST` trials; of a search that suggests them, two as they may be."""
    found = list(islice(experiment.trials(), MOST))
    if search := experiment.search if experiment.adaptive else None:
        found += [experiment.suggested(corner(search, high)) for high in (False, True)]
    return found


def examine_experiment(experiment: Experiment) -> Iterator[Finding]:
    """Every finding, as it is made. Parts of a user's own are found if its place was added. Raises ExperimentError for
    a trial that is not valid."""
    trials = trials_of(experiment)
    count = f"{len(trials):,} trials" if len(trials) < MOST else f"the first {MOST:,} of its trials"
    yield _checked("trials", f"{experiment.name}: {count}, each fits its data", lambda: check_trials(trials, True))
    elsewhere = _elsewhere()
    yield _checked("resources", _resources(elsewhere), lambda: _check_places(experiment, trials, elsewhere))
    for needed in needed_data(trials):
        yield data_finding(needed, elsewhere)
    yield storage_finding(experiment)


def _elsewhere() -> bool:
    try:
        return runs_elsewhere("auto")
    except ClusterError:  # which `lqray doctor` says anyway
        return True


def _resources(elsewhere: bool) -> str:
    return "those of the cluster are for `lqray doctor FILE --cluster`" if elsewhere else "enough here for each trial"


def _check_places(experiment: Experiment, trials: list[NamedTrial], elsewhere: bool) -> None:
    shapes: dict[int, Trial] = {}
    for named in trials:
        shapes.setdefault(named.trial.workers, named.trial)
    check_places(list(shapes.values()), experiment.resources, inline=False, elsewhere=lambda: elsewhere)


def _checked(what: str, found: str, check: Callable[[], None]) -> Finding:
    try:
        check()
    except (UnfitTrialError, PlacementError) as error:
        return Finding(what, "broken", str(error), _IN_THE_FILE)
    return Finding(what, "ok", found)


def data_finding(needed: NeededData, elsewhere: bool = False) -> Finding:
    """Of the data of some trials, as they are here. elsewhere: trials run on a cluster, whose nodes need them."""
    try:
        found = look_at_data(needed.options)
    except DATA_ERRORS as error:
        said = f"{error}\n  needed by: trial {needed.who}"
        if elsewhere:
            return Finding(
                "data", "slow", said, "here; `lqray doctor FILE --cluster` looks at the nodes that will train"
            )
        return Finding("data", "broken", said, "follow the hint, then call `lqray doctor FILE` again")
    return Finding("data", "slow" if found.later else "ok", found.found, found.later)


def storage_finding(experiment: Experiment) -> Finding:
    """Whether checkpoints and logs can be kept; a folder that is not there is not made."""
    remedy = "choose another with storage.folder of the file, or LQRAY_STORAGE, or free space there"
    try:
        address = storage_address(experiment.storage.folder)
        if "://" not in address:
            place = Path(address)
            return writable("storage", next(one for one in (place, *place.parents) if one.exists()), remedy)
        check_folder(open_folder(address))
    except StorageError as error:
        return Finding("storage", "broken", str(error), remedy)
    return Finding("storage", "ok", f"{address} can be written to")
