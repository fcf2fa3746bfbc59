"""One worker process: its threads, device and process group around the training loop.

Runs inside a process group that somebody else made (Ray Train), in one of a given place, or alone. What the environment
says of ranks counts only where the caller says so: a login inside torchrun, SLURM or Kubeflow inherits it.
"""

from __future__ import annotations

import atexit
import gc
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before any group: else its default arguments hold the first one for ever
from torch._C._distributed_c10d import HashStore, TCPStore

from lqray.experiment.schema import Trial
from lqray.training.checkpoint import Checkpoints
from lqray.training.loop import Stepped, train
from lqray.training.reports import Place, Report, interface_variables, loopback_variables

_HELD_HERE = 3  # a list, the loop's name and the argument of the question
_PATIENCE_AT_THE_END = 2.0  # seconds


def run_worker(
    trial: Trial,
    report: Callable[[Report], None],
    device: torch.device,
    threads: int,
    timeout_seconds: float = 600.0,
    checkpoints: Checkpoints | None = None,
    after_step: Callable[[Stepped], None] | None = None,
    stop: Callable[[], bool] | None = None,
    backend: str | None = None,
    network_interface: str | None = None,
    place: Place | Literal["environment"] | None = None,
) -> dict[str, float]:
    """Train `trial` on this process's rank and return the final metrics; see `lqray.training.loop.train`.

    threads: torch's CPU threads; part of what makes results equal to the bit from one launcher to another.
    timeout_seconds, backend, network_interface: of a process group made here; by default nccl on GPUs, gloo elsewhere,
    over the interface that torch chooses. place: of this process in that group; "environment" for torchrun's variables,
    None for one of this process alone. checkpoints, after_step, stop: as of `train`.
    """
    torch.set_num_threads(threads)
    backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    with _process_group(backend, timedelta(seconds=timeout_seconds), network_interface, place) as group:
        return train(trial, group, device, report, checkpoints, after_step, stop)


@contextmanager
def _process_group(
    backend: str, timeout: timedelta, network_interface: str | None, place: Place | Literal["environment"] | None
) -> Iterator[dist.ProcessGroup]:
    """The process group that exists, or one made for this process's place."""
    if dist.is_initialized():
        yield _world()
        return
    release_ended_groups()
    if place is None:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    else:
        os.environ.update(interface_variables(network_interface))
        if place == "environment":
            dist.init_process_group(backend, timeout=timeout)
        else:
            os.environ.update(loopback_variables())
            store = loopback_store(place.port, place.rank, place.world, timeout)
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=timeout)
    try:
        yield _world()
    finally:
        _ended.append(_world())
        dist.destroy_process_group()


def loopback_store(port: int, rank: int, world: int, timeout: timedelta) -> TCPStore:
    """Where `world` processes of this machine meet. Rank 0 holds it, and accepts connections from this machine only:
    by itself torch would accept them from everywhere."""
    address = "127.0.0.1"
    if rank:
        return TCPStore(address, port, world, False, timeout)
    listener = socket.create_server((address, port))
    return TCPStore(address, port, world, True, timeout, master_listen_fd=listener.detach())


_ended: list[dist.ProcessGroup] = []
"""Since they were last looked at."""
_held: list[dist.ProcessGroup] = []
"""Those that something else holds as well."""


def release_ended_groups() -> None:
    """Let go of the groups that ended in this process and that nothing else holds any more.

    A gloo group ends its threads when its last reference goes. A callback of a collective holds one, by the exchange
    that it belongs to, and drops it on such a thread; it may be late, since all that waits for the collective goes on
    before it returns. As the last one it would wait for the end of its own thread, and abort the process ("Resource
    deadlock avoided"). So one is kept here, to be dropped here.
    """
    if any(sys.getrefcount(group) > _HELD_HERE for group in _ended):
        gc.collect()  # of a trial that failed, DDP and its hook hold each other
    _held.extend(_ended)
    _ended.clear()
    _held[:] = [group for group in _held if sys.getrefcount(group) > _HELD_HERE]


@atexit.register
def _end_with_no_thread_of_a_group() -> None:
    """Before the interpreter ends, end the threads of the groups that ended, and wait for those that are late.

    One that asks for the GIL while the interpreter ends, to let go of the tensors of its last collective, is unwound
    through C++ code that allows no unwinding, and aborts the process ("terminate called without an active exception").
    Threads of groups that are a script's own cannot be ended: `lqray.communication.wire.leaving` waits for these.
    """
    until = time.monotonic() + _PATIENCE_AT_THE_END
    release_ended_groups()
    while _held and time.monotonic() < until:
        time.sleep(0.01)
        release_ended_groups()


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group
