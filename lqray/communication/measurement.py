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


class Measuring:
    """What a step's payloads were measured to be, of the last step that measured: means over the workers here."""

    _measured: Sequence[Measured]

    @property
    def nmse(self) -> float:
        """||Q(g) - g||^2 / ||g||^2; 0 for zero gradients."""
        return statistics.fmean(one.nmse for one in self._measured)

    @property
    def bias(self) -> float:
        """||E[Q(g)] - g|| / ||g||: 0 for unbiased methods."""
        return statistics.fmean(one.relative_bias for one in self._measured)

    @property
    def entropy_bits(self) -> float:
        """Entropy of the codes, bits per coordinate."""
        return statistics.fmean(one.entropy_bits / max(1, one.coordinates) for one in self._measured)

    @property
    def huffman_bits(self) -> float:
        """Length of the codes in Huffman codes of their own, bits per coordinate."""
        return statistics.fmean(one.huffman_bits / max(1, one.coordinates) for one in self._measured)
