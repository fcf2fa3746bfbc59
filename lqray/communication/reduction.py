"""What a reduction is, and how one is found by name."""

from __future__ import annotations

import importlib
from typing import Protocol

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray.communication.volume import Volume
from lqray.experiment.options import ExchangeOptions
from lqray.quantization import Payload, Quantizer


class Reduction(Protocol):
    """A way to turn every worker's payload into the mean of what they stand for."""

    def reduce(
        self, payload: Payload, quantizer: Quantizer, group: dist.ProcessGroup, volume: Volume, seed: int, offset: int
    ) -> Future[Tensor]:
        """Start the exchange of this rank's payload and return a future of the mean: (n,) of the payload's dtype, the
        same bytes on all ranks. Adds the bytes handed over and moved, and the seconds, to `volume`. seed, offset: those
        the payload was encoded with, for a reduction that encodes again."""
        ...


def load_reduction(options: ExchangeOptions) -> Reduction:
    """What the REDUCTION of `lqray.communication.<options.reduction>` makes of its options."""
    reduction: Reduction = importlib.import_module(f"lqray.communication.{options.reduction}").REDUCTION(options)
    return reduction
