"""One worker process: its threads, device and process group around the training loop.

Runs under anything that sets torchrun's environment variables, inside a process group that somebody else made (Ray
Train), or alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from lqray.experiment.schema import Trial
from lqray.training.checkpoint import Checkpoints
from lqray.training.loop import Report, train


def run_worker(
    trial: Trial,
    report: Callable[[Report], None],
    device: torch.device,
    threads: int,
    timeout_seconds: float = 600.0,
    checkpoints: Checkpoints | None = None,
    after_step: Callable[[], None] | None = None,
    stop: Callable[[], bool] | None = None,
    backend: str | None = None,
    network_interface: str | None = None,
) -> dict[str, float]:
    """Train `trial` on this process's rank and return the final metrics; see `lqray.training.loop.train`.

    threads: torch's CPU threads; part of what makes results equal to the bit from one launcher to another.
    timeout_seconds, backend, network_interface: of a process group made here; by default nccl on GPUs, gloo elsewhere,
    over the interface that torch chooses. checkpoints, after_step, stop: as of `train`.
    """
    torch.set_num_threads(threads)
    backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    with _process_group(backend, timedelta(seconds=timeout_seconds), network_interface) as group:
        return train(trial, group, device, report, checkpoints, after_step, stop)


def interface_variables(network_interface: str | None) -> dict[str, str]:
    """Environment in which process groups of both backends use that network interface; {} leaves the choice."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return dict.fromkeys(names, network_interface) if network_interface else {}


@contextmanager
def _process_group(backend: str, timeout: timedelta, network_interface: str | None) -> Iterator[dist.ProcessGroup]:
    """The process group that exists, or one made from torchrun's variables, or one of this process alone."""
    if dist.is_initialized():
        yield _world()
        return
    if "RANK" in os.environ:
        os.environ.update(interface_variables(network_interface))
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield _world()
    finally:
        dist.destroy_process_group()


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group
