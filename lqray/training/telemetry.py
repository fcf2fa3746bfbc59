"""What is measured while training, under the names that MLflow shows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
import torch.distributed as dist

from lqray.communication import GradientExchange, Volume
from lqray.communication.wire.volume import Phase
from lqray.quantization import Quantizer


def wire_metrics(volume: Volume) -> dict[str, float]:
    """Bytes of one step and process; no ratio where nothing is sent. What is sent within hosts and between them, where
    hosts send for their workers."""
    found: dict[str, float] = {"wire/ratio_to_float32": volume.ratio_to_float32} if volume.payload_bytes else {}
    if volume.bytes_between_hosts is not None:
        found["wire/bytes_within_hosts"] = volume.bytes_sent - volume.bytes_between_hosts
        found["wire/bytes_between_hosts"] = volume.bytes_between_hosts
    return found | {
        "wire/bits_per_coordinate": volume.bits_per_coordinate,
        "wire/payload_bytes": volume.payload_bytes,
        "wire/bytes_sent": volume.bytes_sent,
        "wire/bytes_received": volume.bytes_received,
    }


def quantizer_metrics(exchange: GradientExchange, group: dist.ProcessGroup, device: torch.device) -> dict[str, float]:
    """NMSE, also beside second moments, bias, entropy and Huffman bits of the payloads just sent (means over ranks),
    every level, seconds of each phase. Collective."""
    own = {
        "quantizer/nmse": exchange.nmse,
        "quantizer/bias": exchange.bias,
        "wire/entropy_bits_per_coordinate": exchange.entropy_bits,
        "wire/huffman_bits_per_coordinate": exchange.huffman_bits,
    }
    if (weighed := exchange.moment_nmse) is not None:
        own["quantizer/moment_nmse"] = weighed
    sums = torch.tensor(list(own.values()), dtype=torch.float64, device=device)
    dist.all_reduce(sums, group=group)
    metrics = dict(zip(own, (sums / group.size()).tolist(), strict=True))
    if not (exchange.compressor.unbiased or exchange.compressor.deterministic):
        del metrics["quantizer/bias"]  # not known
    metrics |= exchange.compressor.telemetry()
    for phase in get_args(Phase):
        metrics[f"time/{phase}_seconds"] = exchange.volume.seconds(phase)
    return metrics


def density_snapshot(exchange: GradientExchange, iterations: int) -> dict[str, Any] | None:
    """Levels and density of the normalized coordinates that this process's first worker encoded at the last step, after
    `iterations` of them, as plain data; None where every gradient was zero or not finite. See
    `lqray.quantization.density` for `edges`, `density` and `zeros`."""
    found = exchange.density()
    quantizer = exchange.compressor
    if found is None or not isinstance(quantizer, Quantizer):
        return None
    return {
        "method": quantizer.options.method,
        "bits": quantizer.coding.bits,
        "norm": quantizer.coding.norm,
        "bucket_size": quantizer.coding.bucket_size,
        "iteration": iterations,
        "levels": quantizer.levels.tolist(),
        "edges": found.edges.tolist(),
        "density": found.density.tolist(),
        "zeros": found.zeros,
    }


class PhaseTimer:
    """Seconds of the phases of one step, while `active`. On a GPU it waits for what a phase has started."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self.active = False

    def begin_step(self, active: bool) -> None:
        """Forget the last step."""
        self.active = active
        self._seconds.clear()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time of what runs within."""
        if not self.active:
            yield
            return
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """`time/<phase>_seconds`. The backward phase ends when the exchange, which it overlaps, has ended."""
        return {f"time/{phase}_seconds": seconds for phase, seconds in self._seconds.items()}

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class Spent:
    """What training has cost this process since step 0, over checkpoints.

    bytes_sent: by exchanges of gradients. seconds: wall time of steps, without evaluations, checkpoints and the extra
    gradients of telemetry; on a GPU, to the end of what they started. Both are None after a checkpoint of a version
    that did not count them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = 0.0
        self.bytes_sent: int | None = 0
        self.seconds: float | None = 0.0

    def begin_step(self) -> None:
        """Call before a step's forward passes."""
        self._begun = time.perf_counter()

    def end_step(self, volume: Volume) -> None:
        """Call after the optimizer's step."""
        if self.bytes_sent is not None:
            self.bytes_sent += volume.bytes_sent
        self._add(self._begun)

    def metrics(self) -> dict[str, float]:
        """`wire/total_bytes_sent` and `time/training_seconds`, as far as they are known."""
        if self._device.type == "cuda":
            began = time.perf_counter()
            torch.cuda.synchronize(self._device)
            self._add(began)
        known = {"wire/total_bytes_sent": self.bytes_sent, "time/training_seconds": self.seconds}
        return {key: value for key, value in known.items() if value is not None}

    def resume(self, seconds: float | None, bytes_sent: int | None) -> None:
        """Count on from a checkpoint."""
        self.seconds, self.bytes_sent = seconds, bytes_sent

    def _add(self, began: float) -> None:
        if self.seconds is not None:
            self.seconds += time.perf_counter() - began


class RunningMean:
    """Mean of the numbers added so far that are finite; NaN without any. left_out: how many were not."""

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0
        self.left_out = 0

    def add(self, value: float) -> None:
        """Count one more number."""
        if not math.isfinite(value):
            self.left_out += 1
            return
        self._total += value
        self._count += 1

    def state_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return {"total": self._total, "count": self._count, "left_out": self.left_out}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned; earlier versions counted what is not finite into the total."""
        self._total, self._count = state["total"], int(state["count"])
        self.left_out = int(state.get("left_out", 0))

    @property
    def value(self) -> float:
        """The mean."""
        return self._total / self._count if self._count else math.nan
