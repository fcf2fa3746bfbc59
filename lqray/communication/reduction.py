"""What a reduction is, and how one is found by name."""

from __future__ import annotations

import importlib
from typing import Protocol

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray.communication.volume import Volume
from lqray.quantization import Payload, Quantizer


class Reduction(Protocol):
    """A way to turn every worker's payload into the mean of what they stand for."""

    def reduce(
        self, payload: Payload, quantizer: Quantizer, group: dist.ProcessGroup, volume: Volume
    ) -> Future[Tensor]:
        """Start the exchange of this rank's payload and return a future of the mean: (n,) of the payload's dtype, the
        same bytes on all ranks. Adds the bytes handed over and moved, and the seconds, to `volume`."""
        ...


def load_reduction(name: str) -> Reduction:
    """The REDUCTION of `lqray.communication.<name>`."""
    reduction: Reduction = importlib.import_module(f"lqray.communication.{name}").REDUCTION
    return reduction
