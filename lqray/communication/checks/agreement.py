"""Ranks agree on what their bytes mean, or the run stops before any are sent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist

from lqray.communication.wire.collectives import gather_now, who_differs


class RanksDisagreeError(RuntimeError):
    """Ranks would read each other's bytes as something else than was written."""


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
