"""What a trial occupies, and how many fit at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lqray.experiment.schema import Resources, Trial


class PlacementError(ValueError):
    """Trials that cannot be placed on the resources there are."""


def check_processes(trial: Trial, resources: Resources) -> None:
    """Raises PlacementError unless `resources.processes` gives each of the trial's workers its own process.

    A trial of one worker (`sgd`) takes one process whatever the file says.
    """
    if resources.processes not in (None, trial.workers) and trial.workers > 1:
        raise PlacementError(
            f"resources.processes is {resources.processes}; allowed: {trial.workers}, one for each of the trial's "
            f"workers (or leave it out, which means the same)"
        )


def needed(trials: Iterable[Trial], resources: Resources) -> dict[str, float]:
    """CPUs and GPUs of the largest of the trials."""
    workers = max(trial.workers for trial in trials)
    need = {"CPU": float(workers * resources.cpus_per_process)}
    if resources.gpus_per_process:
        need["GPU"] = workers * resources.gpus_per_process
    return need


def concurrent_trials(need: Mapping[str, float], available: Mapping[str, float], resources: Resources) -> int:
    """Trials that run at a time: as many as fit, and no more than `resources.concurrent_trials`.

    More would deadlock: each trial's driver holds its place while its workers wait for theirs. Raises PlacementError
    when not even one fits.
    """
    for kind, amount in need.items():
        if available.get(kind, 0.0) < amount:
            raise PlacementError(
                f"a trial needs {amount:g} {kind}, the cluster has {available.get(kind, 0.0):g}; lower workers or "
                f"resources.{kind.lower()}s_per_process, or add machines"
            )
    fitting = int(min(available[kind] // amount for kind, amount in need.items()))
    return fitting if resources.concurrent_trials == "auto" else min(fitting, resources.concurrent_trials)
