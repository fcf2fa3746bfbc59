"""What compressors adapt, fitted to what all ranks have seen.

Statistics are gathered, rank 0 fits, what it found is broadcast: all ranks end with the same bytes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from lqray.communication.wire.collectives import gather_now
from lqray.quantization import Compressor


def update_levels(
    compressor: Compressor, group: dist.ProcessGroup, device: torch.device, seen_by: dist.ProcessGroup | None = None
) -> None:
    """Fit a compressor's parameters to all ranks' statistics. Collective. device: of the group's collectives. seen_by:
    those of the ranks whose statistics count, by default all."""
    rows = _gather(compressor.statistics_table(), seen_by or group, device)
    if group.rank() == 0:
        compressor.update_to(rows)
    fitted = torch.from_numpy(compressor.parameters()).to(device)
    dist.broadcast(fitted, group=group, group_src=0)
    if group.rank() != 0:
        compressor.adopt(fitted.cpu().numpy())


def _gather(table: np.ndarray, group: dist.ProcessGroup, device: torch.device) -> np.ndarray:
    """Every rank's (K_rank, C) rows, in the order of ranks. K may differ: zero buckets are dropped."""
    own = torch.from_numpy(table).to(device)
    lengths = gather_now(torch.tensor([len(table)], device=device), group)
    longest = max(1, int(lengths.max()))
    padded = torch.nn.functional.pad(own, (0, 0, 0, longest - len(table)))
    gathered = gather_now(padded, group).split(longest)
    parts = [part[: int(length)] for part, length in zip(gathered, lengths, strict=True)]
    return torch.cat(parts).cpu().numpy()
