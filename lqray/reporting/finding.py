"""One run of a store, by any name that its trial has, or ever had."""

from __future__ import annotations

from collections.abc import Iterator

from lqray.experiment.errors import ExperimentError
from lqray.experiment.grid import Experiment, experiment_from_text
from lqray.experiment.plan import MOST_TRIALS, published_plan
from lqray.reporting.exported import export_folder, runs_in
from lqray.reporting.planned import Recorded
from lqray.reporting.records import experiment_tags
from lqray.store import runs
from lqray.store.experiments import active_experiments
from lqray.store.runs import Run, only_trial


def find_run(uri: str, name: str, experiment: Recorded | None = None) -> Run:
    """The run of an id, or the latest of the trial of a name or an id; the beginning of an id will do, from four
    letters. A name is one that its runs were recorded under, or that the experiment's file, as given or as launched
    last, calls it by now. Of any experiment, unless one is given. Raises UnknownRunError unless it is exactly one
    trial's."""
    only = experiment.name if experiment else None
    found = _called(uri, name, only)
    if not found:
        ids = {one for each in _files(uri, experiment) if (one := _id_of(each, name))}
        found = [run for trial_id in sorted(ids) for run in _called(uri, trial_id, only)]
    return only_trial(uri, name, found)


def _called(uri: str, name: str, experiment: str | None) -> list[Run]:
    folder = export_folder(uri)
    if folder is None:
        return runs.find_runs(uri, name, experiment)
    return [one for one in (Run(**fields) for fields in runs_in(folder)) if one.is_called(name)]


def _files(uri: str, experiment: Recorded | None) -> Iterator[Experiment]:
    """Files of the experiment, or of all of the store, that list their trials."""
    if experiment and experiment.file:
        yield experiment.file
        return
    if experiment:
        tags = [(experiment.name, experiment_tags(uri, experiment.name))]
    else:
        tags = [] if export_folder(uri) else [(name, one.tags) for name, one in active_experiments(uri).items()]
    for name, own in tags:
        plan = published_plan(own)
        try:
            file = experiment_from_text(plan.text, f"the file of {name}, as launched last") if plan else None
        except ExperimentError:  # of another version of lqray
            continue
        if file and file.most_trials <= MOST_TRIALS:
            yield file


def _id_of(file: Experiment, name: str) -> str | None:
    """Of its trial of this name."""
    if file.adaptive:
        return None
    return next((named.trial.id for named in file.trials() if named.name == name), None)
