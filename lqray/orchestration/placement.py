"""What a trial occupies, and how many fit at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lqray.experiment.schema import Resources, Trial


class PlacementError(ValueError):
    """Trials that cannot be placed on the resources there are."""


def processes_of(trial: Trial, resources: Resources) -> int:
    """Processes that a trial's workers share: `resources.processes`, by default one for each; one for a trial of one
    worker (`sgd`) whatever the file says. Raises PlacementError where they do not share evenly."""
    chosen = resources.processes if resources.processes and trial.workers > 1 else trial.workers
    if trial.workers % chosen:
        divisors = [str(count) for count in range(1, trial.workers + 1) if trial.workers % count == 0]
        raise PlacementError(
            f"resources.processes is {resources.processes}; allowed: {', '.join(divisors)}, a divisor of the trial's "
            f"{trial.workers} workers (or leave it out: one for each worker)"
        )
    return chosen


def needed(trials: Iterable[Trial], resources: Resources) -> dict[str, float]:
    """CPUs and GPUs of the largest of the trials."""
    processes = max(processes_of(trial, resources) for trial in trials)
    need = {"CPU": float(processes * resources.cpus_per_process)}
    if resources.gpus_per_process:
        need["GPU"] = processes * resources.gpus_per_process
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
