"""Process groups that lqray makes beside those that it is given."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import (
    _get_default_store,
    _new_process_group_helper,
    _world,
)

from lqray.communication import streams


def twin_of(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """Another process group of the same ranks, backend and time-out. Collective."""
    return part_of(group, [range(group.size())])


def part_of(group: dist.ProcessGroup, parts: Sequence[Sequence[int]]) -> dist.ProcessGroup:
    """A process group, of the same backend and time-out, of those of a group's ranks that this one is with: `parts` has
    every rank once, in ascending order. Collective over the whole group, with the same parts.

    Names are drawn by rank 0. Those of `dist.new_group` follow from how many groups a process has: ranks that are in
    different groups would wait for each other under different names, and after a group was destroyed the next one would
    find its addresses in the store.
    """
    device = streams.device_of(group)
    drawn = torch.tensor([secrets.randbits(63)], dtype=torch.int64, device=device)
    dist.broadcast(drawn, group=group, group_src=0)
    number, own = next((number, part) for number, part in enumerate(parts) if group.rank() in part)
    everybody = dist.get_process_group_ranks(group)
    ranks = [everybody[rank] for rank in own]
    name: Any = f"lqray-{int(drawn):016x}-{number}"  # newer torch has a type of its own for it
    made = _new_process_group_helper(
        len(ranks),
        own.index(group.rank()),
        ranks,
        dist.Backend(dist.get_backend(group)),
        _get_default_store(),
        name,
        timeout=_timeout_of(group, device),
    )
    part: dist.ProcessGroup = made[0]
    _world.pg_group_ranks[part] = {rank: index for index, rank in enumerate(ranks)}
    return part


def end(group: dist.ProcessGroup) -> None:
    """End a group with its threads and connections; nothing where all groups have been destroyed before. The caller's
    thread must be none of the group's own, which would wait for itself."""
    if group in _world.pg_map:
        dist.destroy_process_group(group)


def _timeout_of(group: dist.ProcessGroup, device: torch.device) -> timedelta:
    options = getattr(group._get_backend(device), "options", None)
    timeout: timedelta = getattr(options, "_timeout", default_pg_timeout)
    return timeout
