"""What can be known before the first trial begins, and before Ray starts: whether trials can ever run here."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.grid import NamedTrial
from lqray.experiment.options.quantizer import CompressorOptions
from lqray.experiment.part_options import check_parts, own_parts
from lqray.experiment.parts import is_reference
from lqray.experiment.schema import Resources, Trial
from lqray.orchestration.launchers.placement import PlacementError, concurrent_trials, needed
from lqray.training.data_files import data_files
from lqray.training.known_data import check_batches

_LEAST_OF_A_PROCESS = 0.1 * 2**30
"""Bytes that a process with torch in it shares with no other, whatever it trains."""
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_OTHER_GPUS = ("/dev/kfd", "/dev/dxg", "/dev/nvidiactl")
"""Devices of GPUs that /proc does not list: AMD's, those of WSL, those of some containers."""


def check_places(
    shapes: Collection[Trial], resources: Resources, inline: bool, elsewhere: Callable[[], bool] = bool
) -> None:
    """Raise PlacementError where trials that need as much as `shapes` can never run: their workers do not divide, or
    they need what this machine does not have. inline: as of the launcher. elsewhere: a cluster is there to be joined,
    which may have more; asked only where it matters."""
    if not shapes:
        return
    if problem := loopback_problem():
        raise PlacementError(problem)
    need = needed(shapes, resources)  # which also sees whether the workers divide
    processes = round(need["CPU"]) // resources.cpus_per_process
    there = {"memory": float(_memory()), "GPU": _gpus()}
    # Inline, the limit of a process's memory is nothing that is set aside. A Ray of our own says it has enough cores.
    wanted = [kind for kind in need if there.get(kind) is not None and not (inline and kind == "memory")]
    try:
        if wanted:
            available = {kind: amount for kind, amount in there.items() if amount is not None}
            concurrent_trials({kind: need[kind] for kind in wanted}, available, resources, "this machine")
        if processes * _LEAST_OF_A_PROCESS > _memory():
            raise PlacementError(
                f"a trial is {processes} processes here, and this machine's {_memory() / 2**30:.4g} GiB of memory hold "
                f"at most {int(_memory() / _LEAST_OF_A_PROCESS)}, were they empty; lower resources.processes, which "
                "workers can share, or workers, or use a cluster"
            )
    except PlacementError:
        if not elsewhere():
            raise


def loopback_problem() -> str | None:
    """Why the processes of this machine cannot reach each other; None where they can. Ray would wait for itself for
    minutes, and the groups of workers fail one by one."""
    with socket.socket() as server:
        try:
            server.bind(("127.0.0.1", 0))
            server.listen()
            socket.create_connection(server.getsockname(), timeout=5).close()
        except OSError as error:
            return (
                f"127.0.0.1 cannot be reached ({error.strerror or error}), where the processes of a launch meet: the "
                "loopback interface of this machine or container is down (ip link set lo up)"
            )
    return None


def check_trials(trials: Iterable[NamedTrial], thorough: bool) -> None:
    """Raise UnfitTrialError for the first trial that its data, its network, its exchange or a part of a user's own will
    not let begin. Parts of a user's own are imported; what they make is looked at as far as its data are known.

    Networks are built without memory for their numbers, which takes torch, and seconds to import it: for all trials
    where `thorough`, else for those that name something which only a network can confirm."""
    looked_at = set()
    for named in trials:
        trial = named.trial
        parts = trial.data.canonical_json, trial.model.canonical_json, trial.schedule.batch_size, trial.workers
        own = tuple(getattr(trial, one.section).canonical_json for one in own_parts(trial))
        own += trial.metrics
        exchanged = trial.exchange.skip, trial.exchange.fragments, isinstance(trial.quantizer, CompressorOptions)
        key = (*parts, own, trial.optimizer.name, *exchanged)
        if key in looked_at:
            continue
        looked_at.add(key)
        try:
            check_batches(trial)
            check_parts(trial)
            if is_reference(trial.data.name):
                with suppress(OSError):  # its files may come with the first trial
                    data_files(trial.data)
            if thorough or _names_what_torch_knows(trial):
                from lqray.training.estimate import check_network

                check_network(trial)
        except UnfitTrialError as error:
            raise UnfitTrialError(f"trial {named.name}: {error}") from error


def _names_what_torch_knows(trial: Trial) -> bool:
    if is_reference(trial.model.name) or is_reference(trial.optimizer.name):
        return True
    named = trial.model.name == "torchvision" or trial.optimizer.name == "muon"
    return named or trial.exchange.fragments > 1 or not {"bias", "norm"}.issuperset(trial.exchange.skip)


def _memory() -> int:
    """Bytes that this machine, or the container that this process is in, may use."""
    limits: list[int] = [psutil.virtual_memory().total]
    for file in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # "max"
            limits.append(int(Path(file).read_text()))
    return min(limits)


def _gpus() -> float | None:
    """At most so many GPUs are there; None where that cannot be told without asking their driver."""
    if not sys.platform.startswith("linux"):
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip(" ,"):
        return 0.0
    listed = list(Path("/proc/driver/nvidia/gpus").glob("*"))
    if listed and not (visible and "MIG" in visible):
        return float(len(listed))
    return None if listed or any(Path(device).exists() for device in _OTHER_GPUS) else 0.0
