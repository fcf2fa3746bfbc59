"""Gradients that are not quantized, of a step that quantizes others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray.communication import streams
from lqray.communication.wire.volume import Volume


class Bundle:
    """The skipped coordinates of all DDP buckets of a step, averaged by one all-reduce. All of it is called with the
    same current stream."""

    def __init__(self, group: dist.ProcessGroup, workers: int, beside: int = 1) -> None:
        """workers: of each rank. beside: how many neighbouring ranks are on a host, where that is counted."""
        self._group = group
        self._workers = workers
        self._beside = beside
        self._sums: list[Tensor] = []
        self._done: list[Future[Tensor]] = []

    def add(self, parts: Sequence[Tensor], volume: Volume) -> Future[Tensor]:
        """Skipped coordinates (n,) of each of this process's workers to a future of their mean over all workers."""
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        self._sums.append(total)
        self._done.append(streams.future(total.device))
        volume.coordinates += total.numel()
        return self._done[-1]

    def start(self, volume: Volume) -> None:
        """All buckets are known: one all-reduce for each dtype among them."""
        for dtype in dict.fromkeys(total.dtype for total in self._sums):
            chosen = [index for index, total in enumerate(self._sums) if total.dtype == dtype]
            self._reduce([self._sums[index] for index in chosen], [self._done[index] for index in chosen], volume)
        self._sums, self._done = [], []

    def _reduce(self, sums: list[Tensor], done: list[Future[Tensor]], volume: Volume) -> None:
        bundle = torch.cat(sums).div_(self._group.size() * self._workers)
        work = dist.all_reduce(bundle, group=self._group, async_op=True)
        assert work is not None
        volume.all_reduced(bundle.numel() * bundle.element_size(), self._group.size(), self._beside)
        parts = bundle.split([total.numel() for total in sums])

        def hand_out(reduced: Future[Any]) -> None:
            for future, part in zip(done, parts, strict=True):
                streams.complete(future, partial(_part_of, reduced, part))

        streams.arrival([work], self._group, bundle.device).add_done_callback(hand_out)


def _part_of(reduced: Future[Any], part: Tensor) -> Tensor:
    reduced.value()  # raises what the collective did
    return part
