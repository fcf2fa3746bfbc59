"""Is quantizing faster than not, here and now? Measured on the link itself before training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from lqray.quantization import Quantizer

_REPEATS = 3
_MOST = 2**22


@dataclass(frozen=True)
class Decision:
    """bypass: exchange in full precision. The rest are seconds a step, of the slowest rank: encode and decode of the
    whole gradient, and its exchange as payloads and by a float32 all-reduce."""

    bypass: bool
    encode_seconds: float
    decode_seconds: float
    exchange_seconds: float
    all_reduce_seconds: float

    def metrics(self) -> dict[str, float]:
        """As telemetry, `bypass/...`."""
        return {f"bypass/{name}": float(value) for name, value in asdict(self).items()}


def decide(quantizer: Quantizer, coordinates: int, group: dist.ProcessGroup, device: torch.device) -> Decision:
    """Measure on a random gradient of at most 4 million coordinates and scale to `coordinates`. Collective; the same
    decision on all ranks."""
    n = max(1, min(coordinates, _MOST))
    gradient = torch.randn(n, device=device)
    payload = quantizer.encode(gradient, seed=0, offset=0)
    rows = payload.buffer.new_empty((group.size(), payload.nbytes))
    rows[:] = payload.buffer

    def gather() -> None:
        dist.all_gather(list(rows.unbind()), payload.buffer, group=group)

    steps: list[Callable[[], object]] = [
        lambda: quantizer.encode(gradient, seed=0, offset=0),
        lambda: quantizer.decode_mean(rows, payload),
        gather,
        lambda: dist.all_reduce(gradient, group=group),
    ]
    own = torch.tensor([_median_seconds(step, device, group) for step in steps], device=device)
    dist.all_reduce(own, op=dist.ReduceOp.MAX, group=group)
    seconds = [value * coordinates / n for value in own.tolist()]
    return Decision(sum(seconds[:3]) >= seconds[3], *seconds)


def _median_seconds(step: Callable[[], object], device: torch.device, group: dist.ProcessGroup) -> float:
    def once() -> float:
        dist.barrier(group=group)
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    return statistics.median(once() for _ in range(_REPEATS))
