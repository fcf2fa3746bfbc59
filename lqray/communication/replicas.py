"""Ranks agree on what their bytes mean, and replicas are bit-identical, or the run stops."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from lqray.communication.collectives import gather_now


class ReplicasDivergedError(RuntimeError):
    """Ranks that should hold the same parameters and buffers do not."""


class RanksDisagreeError(RuntimeError):
    """Ranks would read each other's bytes as something else than was written."""


def who_differs(values: Sequence[Hashable]) -> str:
    """Of what the ranks said, one value each in their order: "" when all are equal, else who differs from whom. Ranks
    are blamed only by a majority of more than half."""
    usual, count = Counter(values).most_common(1)[0]
    if count == len(values):
        return ""
    if 2 * count > len(values):
        others = ", ".join(str(rank) for rank, value in enumerate(values) if value != usual)
        return f"rank {others} of {len(values)} differs from the rest"
    alike = {value: [str(rank) for rank, other in enumerate(values) if other == value] for value in values}
    sides = " and ".join(f"rank {', '.join(ranks)}" for ranks in alike.values())
    return f"{sides} differ from each other, and no majority of the {len(values)} ranks says who is right"


def check_agreement(agreed: str, seeds: Sequence[int], group: dist.ProcessGroup, device: torch.device) -> None:
    """Compare over the ranks of `group` what all must have equal, `agreed`, and seeds, which must differ. Collective.

    Raises RanksDisagreeError, which names the ranks, on all of them.
    """
    digest = hashlib.blake2b(agreed.encode(), digest_size=8).digest()
    own = int.from_bytes(digest, "little", signed=True)
    digests = gather_now(torch.tensor([own], device=device), group).tolist()
    if differ := who_differs(digests):
        raise RanksDisagreeError(
            f"the ranks' methods, options or levels are not the same: {differ}. Here, on rank {group.rank()}, they are "
            f"{agreed}. Every rank must make its exchange with the same arguments"
        )
    signed = [seed - 2**64 if seed >= 2**63 else seed for seed in seeds]
    rows = gather_now(torch.tensor([signed], dtype=torch.int64, device=device), group).tolist()
    every = [seed for row in rows for seed in row]
    twins = [str(rank) for rank, row in enumerate(rows) if any(every.count(seed) > 1 for seed in row)]
    if twins:
        raise RanksDisagreeError(
            f"ranks {', '.join(twins)} round with the same seed, so their errors would not average out; give every "
            "worker a seed of its own"
        )


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
