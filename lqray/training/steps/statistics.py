"""Buffers of workers that train alone, such as BatchNorm's running statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from lqray.communication.wire.collectives import gather_now


@torch.no_grad()
def average_buffers(
    names: Sequence[str], workers: Sequence[nn.Module], shared: nn.Module, group: dist.ProcessGroup
) -> None:
    """Give all workers, and the network that they share, the mean over all workers of each floating-point buffer, found
    in float64, and worker 0's of any other. Collective; the same bits however many processes share the workers."""
    held = [dict(worker.named_buffers()) for worker in workers]
    own = dict(shared.named_buffers())
    for dtype in dict.fromkeys(own[name].dtype for name in names):
        chosen = [name for name in names if own[name].dtype == dtype]
        rows = torch.stack([torch.cat([one[name].reshape(-1) for name in chosen]) for one in held])
        everybody = gather_now(rows.view(torch.uint8), group).view(dtype)
        agreed = everybody.to(torch.float64).mean(dim=0).to(dtype) if dtype.is_floating_point else everybody[0]
        parts = agreed.split([own[name].numel() for name in chosen])
        for name, part in zip(chosen, parts, strict=True):
            for buffers in (own, *held):
                buffers[name].copy_(part.view_as(own[name]))
