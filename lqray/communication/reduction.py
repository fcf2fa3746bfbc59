"""What a reduction is, and how one is found by name."""

from __future__ import annotations

import importlib
from typing import Protocol, runtime_checkable

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray.communication.wire.parcel import CheckWords, Parcel
from lqray.communication.wire.volume import Volume
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.part_options import chosen_part
from lqray.experiment.parts import call, checked
from lqray.quantization import Compressor


@runtime_checkable
class Reduction(Protocol):
    """A way to turn every worker's payloads into the means of what they stand for."""

    def parts(self, workers: int) -> int:
        """Into how many parts each tensor is cut before it is encoded, where each process has so many workers."""
        ...

    def reduce(self, parcel: Parcel, compressor: Compressor, volume: Volume) -> Future[list[Tensor]]:
        """Start the exchange of this process's parcel and return a future of the mean over all workers of every
        payload's tensor: (n,) each, of its dtype, the same bytes on all ranks, however many workers a process has.

        Adds the bytes handed over and moved, and the seconds, to `volume`. The future's error is LevelsDifferError
        where ranks' levels differ.
        """
        ...

    def close(self) -> None:
        """Let go of threads."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What it keeps from step to step, this process's own."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        ...


def load_reduction(
    options: ExchangeOptions, group: dist.ProcessGroup, checks: CheckWords, inside: dist.ProcessGroup | None = None
) -> Reduction:
    """What the REDUCTION of `lqray.communication.reductions.<options.reduction>` makes of its options, or what one of a
    user's own does, which is given `exchange.options`. inside: the processes of this one's host, where several send
    together (`lqray.communication.hosts`). Collective. Raises PartError."""
    if chosen := chosen_part("exchange", options):
        part, given = chosen.load()
        own: Reduction = checked(
            chosen.what, call(chosen.what, part, options=given, group=group, checks=checks), Reduction
        )
        return own
    module = importlib.import_module(f"lqray.communication.reductions.{options.reduction}")
    groups = (group, checks) if inside is None else (group, checks, inside)
    reduction: Reduction = module.REDUCTION(options, *groups)
    return reduction
