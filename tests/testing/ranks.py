"""Runs a function on several ranks of a gloo group, each in a process of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from tests.testing.copies import CONTEXT, IMPORTED


def run_ranks(function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """[function(rank, *arguments) for each rank], within a process group. A rank's exception is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        CONTEXT.set_forkserver_preload(IMPORTED)
        queue = CONTEXT.SimpleQueue()
        processes = start_processes(
            _rank,
            (dict(os.environ), world, folder, queue, function, arguments),
            nprocs=world,
            join=False,
            start_method="forkserver",
        )
        results: dict[int, Any] = {}
        done = False
        while not done:
            done = processes.join(timeout=0.2)
            while not queue.empty():
                rank, value = queue.get()
                results[rank] = value
        return [results[rank] for rank in range(world)]


def _rank(
    rank: int,
    environment: dict[str, str],
    world: int,
    folder: str,
    queue: Any,
    function: Callable[..., Any],
    arguments: Any,
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'store'}", rank=rank, world_size=world)
    try:
        queue.put((rank, function(rank, *arguments)))
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # As lqray's own worker processes end, and for the same reason: see orchestration/launchers/inline.py.
    os._exit(0)
