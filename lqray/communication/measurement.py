"""What quantization costs a step's gradients, measured on the payloads that are sent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lqray.quantization import Payload, Quantizer


@dataclass
class Measured:
    """Of one worker and step: sums over its tensors."""

    error: float = 0.0
    energy: float = 0.0
    bias: float = 0.0
    entropy_bits: float = 0.0
    huffman_bits: float = 0.0
    coordinates: int = 0

    def add(self, gradient: Tensor, payload: Payload, quantizer: Quantizer) -> None:
        exact = gradient.to(torch.float64)
        energy = float(exact.square().sum())
        self.error += float((quantizer.decode(payload).to(torch.float64) - exact).square().sum())
        self.energy += energy
        self.bias += quantizer.bias(gradient) ** 2 * energy
        self.entropy_bits += payload.entropy_bits() * payload.n
        self.huffman_bits += payload.huffman_bits() * payload.n
        self.coordinates += payload.n

    @property
    def nmse(self) -> float:
        return self.error / self.energy if self.energy else 0.0

    @property
    def relative_bias(self) -> float:
        return math.sqrt(self.bias / self.energy) if self.energy else 0.0
