"""What quantization costs a step's gradients, measured on the payloads that are sent."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lqray.communication.wire.parcel import decoded_parts
from lqray.quantization import Compressor, Payload


@dataclass
class Measured:
    """Of one worker and step: sums over its tensors."""

    error: float = 0.0
    energy: float = 0.0
    bias: float = 0.0
    entropy_bits: float = 0.0
    huffman_bits: float = 0.0
    coordinates: int = 0

    def add(self, gradient: Tensor, payloads: Sequence[Payload], compressor: Compressor) -> None:
        exact = gradient.to(torch.float64).reshape(-1)
        energy = float(exact.square().sum())
        decoded = decoded_parts(payloads, compressor).to(torch.float64)
        error = float((decoded - exact).square().sum())
        self.error += error
        self.energy += energy
        self.bias += error if compressor.deterministic else compressor.bias(gradient) ** 2 * energy
        for payload in payloads:
            self.entropy_bits += payload.entropy_bits() * payload.n
            self.huffman_bits += payload.huffman_bits() * payload.n
            self.coordinates += payload.n

    @property
    def nmse(self) -> float:
        return self.error / self.energy if self.energy else 0.0

    @property
    def relative_bias(self) -> float:
        return math.sqrt(self.bias / self.energy) if self.energy else 0.0


class Observations:
    """What the workers of a process look at in a step, beside encoding. kept: what the first of them encoded, where it
    is wanted. measure: whether payloads are decoded and compared."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self.begin_step(False, False, False)

    def begin_step(self, sample: bool, measure: bool, keep: bool) -> None:
        """Forget the last step. sample: compressors observe; measure, keep: see the class."""
        self._sample, self.measure, self._keep = sample, measure, keep
        self.kept: list[Tensor] = []
        self._measured = [Measured() for _ in range(self._workers)]

    def note(self, worker: int, gradient: Tensor, payloads: Sequence[Payload], compressor: Compressor) -> None:
        """Of a worker's tensor, what the compressor of its parameters has made of it."""
        if self._sample:
            compressor.observe(gradient, worker)
        if self._keep and not worker:
            self.kept.append(gradient.clone())
        if self.measure and payloads:
            self._measured[worker].add(gradient, payloads, compressor)

    @property
    def nmse(self) -> float:
        return statistics.fmean(one.nmse for one in self._measured)

    @property
    def bias(self) -> float:
        return statistics.fmean(one.relative_bias for one in self._measured)

    @property
    def entropy_bits(self) -> float:
        return statistics.fmean(one.entropy_bits / max(1, one.coordinates) for one in self._measured)

    @property
    def huffman_bits(self) -> float:
        return statistics.fmean(one.huffman_bits / max(1, one.coordinates) for one in self._measured)
