"""Replicas are bit-identical, or the run stops."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist
from torch import nn

from lqray.communication.wire.collectives import gather_now


class ReplicasDivergedError(RuntimeError):
    """Ranks that should hold the same parameters and buffers do not."""


def checksum(module: nn.Module) -> int:
    """A signed 64-bit hash of names and bytes of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


def check_replicas(module: nn.Module, group: dist.ProcessGroup, device: torch.device) -> None:
    """Compare the checksum of `module` over the ranks of `group`; raises ReplicasDivergedError where they differ."""
    own = torch.tensor([checksum(module)], dtype=torch.int64, device=device)
    sums = gather_now(own, group).tolist()
    if len(set(sums)) > 1:
        by_rank = ", ".join(f"rank {rank}: {value & (2**64 - 1):016x}" for rank, value in enumerate(sums))
        raise ReplicasDivergedError(f"model replicas differ between ranks (checksums {by_rank})")
