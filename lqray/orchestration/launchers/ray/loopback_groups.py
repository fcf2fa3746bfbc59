"""Process groups of Ray Train's workers whose store listens where the workers are. torch's own listens on all addresses
of the machine, and answers everybody."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from ray.train.torch import config as ray_torch

from lqray.training.worker import loopback_store

_LOOPBACK = "127.0.0.1"


class LoopbackTorchConfig(ray_torch.TorchConfig):  # type: ignore[misc]
    """As Ray's; where a Ray keeps to the loopback interface, its groups do, too."""

    @property
    def backend_cls(self) -> type:
        """Ray's name for what makes the groups."""
        return _LoopbackBackend


class _LoopbackBackend(ray_torch._TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(_Workers(worker_group), backend_config)


class _Workers:
    """A worker group that makes process groups as is said here, and does all else that it is asked."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def __len__(self) -> int:
        return len(self._group)

    def execute_single_async(self, rank: int, call: Any, *arguments: Any, **options: Any) -> Any:
        chosen = _make_process_group if call is ray_torch._setup_torch_process_group else call
        return self._group.execute_single_async(rank, chosen, *arguments, **options)


def _make_process_group(backend: str, world_rank: int, world_size: int, init_method: str, timeout_s: int) -> None:
    if os.environ["MASTER_ADDR"] != _LOOPBACK:
        ray_torch._setup_torch_process_group(backend, world_rank, world_size, init_method, timeout_s)
        return
    if "nccl" in backend:  # as Ray does: a collective that hangs ends its process
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    timeout = timedelta(seconds=timeout_s)
    store = loopback_store(int(os.environ["MASTER_PORT"]), world_rank, world_size, timeout)
    dist.init_process_group(backend, store=store, rank=world_rank, world_size=world_size, timeout=timeout)
