"""On which hosts the ranks of a group are."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from lqray.communication import streams
from lqray.communication.wire.collectives import gather_now

_REMEDY = (
    "exchange.hosts: N, for N groups of neighbouring workers whose gradients are averaged exactly, wherever they are; "
    "or the reduction all_gather"
)


def host_here() -> str:
    """What tells apart hosts that reach each other over a network: the machine since it was started, its name, and,
    where there are several on it, as containers have, the network that this process is in."""
    machine = network = ""
    with suppress(OSError):
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        network = str(os.stat("/proc/self/ns/net").st_ino)  # noqa: PTH116 (it is a link to nothing)
    return f"{machine}/{socket.gethostname()}/{network}"


def hosts_of(group: dist.ProcessGroup) -> int:
    """On how many hosts the ranks of a group are, each as many neighbours. Collective. Raises ValueError, on all ranks,
    where they are placed otherwise, and for one host only."""
    digest = int.from_bytes(hashlib.blake2b(host_here().encode(), digest_size=8).digest(), "little", signed=True)
    own = torch.tensor([digest], dtype=torch.int64, device=streams.device_of(group))
    where = gather_now(own, group).tolist()
    names = list(dict.fromkeys(where))
    if len(names) == 1:
        raise ValueError(
            f"exchange.reduction: hierarchical: found all {len(where)} processes on one host, where nothing would be "
            f"compressed; allowed: several hosts, or {_REMEDY}"
        )
    each = len(where) // len(names)
    if where != [name for name in names for _ in range(each)]:
        held = [[str(rank) for rank, name in enumerate(where) if name == one] for one in names]
        found = "; ".join(f"host {number} has rank {', '.join(ranks)}" for number, ranks in enumerate(held))
        raise ValueError(
            f"exchange.reduction: hierarchical: found hosts on which ranks are placed unevenly, or not as neighbours: "
            f"{found}; allowed: as many neighbouring ranks on each, or {_REMEDY}"
        )
    return len(names)
