"""What a trial occupies, and how many fit at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lqray.experiment.options.quantizer import CompressorOptions, PostLocalSgdOptions
from lqray.experiment.schema import Resources, Trial


class PlacementError(ValueError):
    """Trials that cannot be placed on the resources there are."""


def processes_of(trial: Trial, resources: Resources) -> int:
    """Processes that a trial's workers share: `resources.processes`, by default one for each; one for a trial of one
    worker (`sgd`) whatever the file says. Raises PlacementError where they do not share evenly, or the method or
    hosts want it otherwise."""
    chosen = resources.processes if resources.processes and trial.workers > 1 else trial.workers
    if trial.workers % chosen:
        divisors = [str(count) for count in range(1, trial.workers + 1) if trial.workers % count == 0]
        raise PlacementError(
            f"resources.processes is {resources.processes}; allowed: {', '.join(divisors)}, a divisor of the trial's "
            f"{trial.workers} workers (or leave it out: one for each worker)"
        )
    if chosen != trial.workers and isinstance(trial.quantizer, PostLocalSgdOptions):
        raise PlacementError(
            f"resources.processes is {resources.processes}, and a trial of {trial.workers} workers has post_local_sgd, "
            f"by which torch averages what processes hold; allowed: {trial.workers}, one for each worker (or leave it "
            "out)"
        )
    by_hosts = trial.exchange.reduction == "hierarchical" and isinstance(trial.quantizer, CompressorOptions)
    hosts = trial.exchange.hosts if by_hosts else None
    if by_hosts and hosts is None and chosen == 1:
        raise PlacementError(
            f"exchange.hosts is null, for as many hosts as processes are placed on, and one process has all "
            f"{trial.workers} workers; allowed: exchange.hosts: a divisor of the workers from 2, or more "
            "resources.processes on several hosts"
        )
    if hosts and chosen % hosts and hosts % chosen:
        raise PlacementError(
            f"resources.processes is {chosen} and exchange.hosts {hosts}; allowed: a multiple or a divisor of it, so "
            "that a process holds whole hosts, or a host whole processes"
        )
    return chosen


_KINDS = {
    "CPU": (1, "CPU cores", "resources.cpus_per_process"),
    "GPU": (1, "GPUs", "resources.gpus_per_process"),
    "memory": (2**30, "GiB of memory", "resources.memory_gib_per_process"),
}


def too_little(need: Mapping[str, float], available: Mapping[str, float], where: str) -> str | None:
    """What is missing for a single trial, and what to do; None where nothing is. available: amounts by kind; of a kind
    that it does not name, none is there."""
    for kind, amount in need.items():
        if available.get(kind, 0.0) < amount:
            unit, name, key = _KINDS[kind]
            return (
                f"a trial needs {amount / unit:,.7g} {name}, {where} has {available.get(kind, 0.0) / unit:,.4g}; lower "
                f"{key}, resources.processes or workers, or add machines"
            )
    return None


def needed(trials: Iterable[Trial], resources: Resources) -> dict[str, float]:
    """CPUs, GPUs and bytes of memory of the largest of the trials."""
    processes = max(processes_of(trial, resources) for trial in trials)
    return {kind: processes * amount for kind, amount in per_process(resources).items()}


def in_words(need: Mapping[str, float]) -> str:
    """Amounts by kind, such as "2 CPU cores, 1 GPUs"."""
    return ", ".join(f"{amount / _KINDS[kind][0]:,.7g} {_KINDS[kind][1]}" for kind, amount in need.items())


def per_process(resources: Resources) -> dict[str, float]:
    """What a process of a trial holds, by Ray's kinds: CPUs, and GPUs and bytes of memory where it has any."""
    need = {"CPU": float(resources.cpus_per_process)}
    if resources.gpus_per_process:
        need["GPU"] = resources.gpus_per_process
    if resources.memory_gib_per_process:
        need["memory"] = resources.memory_gib_per_process * 2**30
    return need


def device_of(rank: int, resources: Resources) -> str:
    """Device of a rank on a machine whose GPUs it need not share with other trials: ranks of a share of a GPU each fill
    one GPU after the other."""
    if not resources.gpus_per_process:
        return "cpu"
    share = resources.gpus_per_process
    return f"cuda:{int(rank * share)}" if share >= 1 else f"cuda:{rank // ranks_per_gpu(share)}"


def ranks_per_gpu(share: float) -> int:
    """How many processes with a share of a GPU fit on one: with 0.4, two."""
    return int(1 / share + 1e-9)


def backend_of(resources: Resources) -> str:
    """Backend of a trial's process group: nccl where every rank has a GPU, or more, to itself; it refuses two ranks on
    one GPU. gloo otherwise."""
    return "nccl" if resources.gpus_per_process >= 1 else "gloo"


def concurrent_trials(
    need: Mapping[str, float], available: Mapping[str, float], resources: Resources, where: str = "the cluster"
) -> int:
    """Trials that run at a time: as many as fit, and no more than `resources.concurrent_trials`. where: whose resources
    are available, in words.

    More would deadlock: each trial's driver holds its place while its workers wait for theirs. A share of a GPU is of
    one GPU: three processes of 0.4 need two of them. Raises PlacementError when not even one trial fits.
    """
    share = resources.gpus_per_process
    if missing := too_little(need, available, where):
        raise PlacementError(missing)
    fitting = int(min(available[kind] // amount for kind, amount in need.items()))
    if 0 < share < 1 and "GPU" in need:
        processes = round(need["GPU"] / share)
        places = int(available["GPU"]) * ranks_per_gpu(share)
        fitting = min(fitting, places // processes)
        if not fitting:
            raise PlacementError(
                f"{processes} processes with {share:g} of a GPU each need more than the {available['GPU']:g} GPUs "
                f"there are: {ranks_per_gpu(share)} fit on one; lower resources.processes or gpus_per_process"
            )
    return fitting if resources.concurrent_trials == "auto" else min(fitting, resources.concurrent_trials)
