"""The one collective that lqray's exchanges are made of, under the name that this torch has for it."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed all_gather_into_tensor and warns at every use of the old name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def all_gather_into_tensor(output: Tensor, own: Tensor, group: dist.ProcessGroup) -> dist.Work:
    """Start gathering every rank's `own` (n,) into `output` (W * n,), in the order of ranks."""
    work: dist.Work = _all_gather(output, own, group=group, async_op=True)
    return work


def gather_now(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Every rank's `own` (n, ...) in the order of ranks: (W * n, ...)."""
    output = own.new_empty((group.size() * own.shape[0], *own.shape[1:]))
    all_gather_into_tensor(output, own, group).wait()
    return output
