"""Runs to report on: of an MLflow store, or of a folder that `lqray export` wrote."""

from __future__ import annotations

from collections.abc import Mapping

from lqray.experiment.plan import plan_tags
from lqray.reporting.exported import experiment_of, export_folder, runs_in
from lqray.store import experiments, runs
from lqray.store.experiments import UnknownExperimentError, unknown_experiment
from lqray.store.runs import Run, latest_attempts

__all__ = ["Run", "UnknownExperimentError", "experiment_tags", "latest_attempts", "read_records"]


def read_records(uri: str, experiment: str) -> list[Run]:
    """lqray's runs of an experiment, oldest first. uri: absolute store, or folder. Runs of other tools in the same
    experiment, and deleted ones, are left out. Raises UnknownExperimentError."""
    experiment_tags(uri, experiment)
    folder = export_folder(uri)
    return [Run(**fields) for fields in runs_in(folder)] if folder else runs.read_runs(uri, experiment)


def experiment_tags(uri: str, experiment: str) -> Mapping[str, str]:
    """Tags of an experiment. Raises UnknownExperimentError."""
    folder = export_folder(uri)
    if folder is None:
        return experiments.experiment_tags(uri, experiment)
    name, text = experiment_of(folder)
    if name != experiment:
        raise unknown_experiment(uri, experiment, [name])
    return plan_tags("", text) if text else {}
