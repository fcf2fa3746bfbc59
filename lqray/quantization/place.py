"""Which of the workers whose payloads of a tensor are averaged encodes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lqray.quantization.payload import floats

PHASE_BYTES = 4
SHARED_SEED = 0x736861726564
"""Of what workers draw together, where nobody says another one."""
_GOLDEN = 0x9E3779B97F4A7C15  # spreads the seeds of parts over all of 64 bits


def seed_of_part(seed: int, part: int) -> int:
    """The seed of a part of a tensor, which is cut into several."""
    return (seed + part * _GOLDEN) % 2**64


@dataclass(frozen=True)
class Place:
    """worker: 0 to workers - 1. workers: of all processes. part: of the tensor, where it is cut into several.
    correlated: whether those that round at random shall do so together (`exchange.rounding`). seed: of what they draw
    together, unsigned 64-bit, the same for all."""

    worker: int = 0
    workers: int = 1
    part: int = 0
    correlated: bool = False
    seed: int = SHARED_SEED

    def phase(self, seed: int) -> int:
        """Of the random stream that all workers know, the worker's own phase, an unsigned 32-bit integer: that of
        worker w of W is w / W of a turn, and that of one alone comes from its seed."""
        if self.workers == 1:
            return (seed * _GOLDEN) % 2**64 >> 32
        return (self.worker << 32) // self.workers

    @property
    def shared_seed(self) -> int:
        """Of the random stream that all workers know, at the tensor's offset."""
        return seed_of_part(self.seed, self.part)


def write_phase(phase: int, device: torch.device) -> Tensor:
    """Four bytes, little-endian, made where they are wanted: a copy to a GPU would make the host wait."""
    signed = phase - 2**32 if phase >= 2**31 else phase
    return torch.full((1,), signed, dtype=torch.int32, device=device).view(torch.uint8)


def read_phases(parts: Tensor) -> Tensor:
    """What `write_phase` wrote in each of (W, 4) bytes: int32 (W,)."""
    return floats(parts).view(torch.int32).view(-1)
