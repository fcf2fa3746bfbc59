"""Rules about CUDA streams and the futures that stand for work on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.futures import Future


def after_both(
    first: Future[Any], second: Future[Any], combine: Callable[[Any, Any], Tensor], device: torch.device
) -> Future[Tensor]:
    """combine(value of first, value of second), on a GPU after both on the device.

    `torch.futures.collect_all` knows no devices: who waits for its future does not wait for the GPU, and DDP read
    gradients that were not yet written (seen on an H200).
    """
    both: Future[Tensor] = Future(devices=[device] if device.type == "cuda" else None)

    def finish(_: Future[Any]) -> None:
        try:  # wait: the streams of a callback wait for the future it belongs to only
            both.set_result(combine(first.wait(), second.wait()))
        except Exception as error:  # whatever it is, DDP waits for this future
            both.set_exception(error)  # type: ignore[arg-type]  # so torch declares it

    first.add_done_callback(lambda _: second.add_done_callback(finish))
    return both
