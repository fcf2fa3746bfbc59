"""What exchanging one step's gradients costs: bytes, counted where a collective takes them, and seconds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass
class Volume:
    """Of one worker and one step.

    coordinates: of the gradient. payload_bytes: handed to the collective. bytes_sent, bytes_received: what the
    collective's algorithm then moves (all_gather over a ring: each payload to every other worker). encode_seconds,
    exchange_seconds, decode_seconds: wall time; the exchange of one DDP bucket may overlap the encoding of the next.
    """

    coordinates: int = 0
    payload_bytes: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    encode_seconds: float = 0.0
    exchange_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def bits_per_coordinate(self) -> float:
        """Bits of the payload for each coordinate of the gradient; NaN without any."""
        return 8 * self.payload_bytes / self.coordinates if self.coordinates else float("nan")


def full_precision_volume(module: nn.Module, workers: int) -> Volume:
    """What torch DDP's all-reduce of this module's gradients costs in bytes, every gradient in its parameter's dtype.

    A ring all-reduce sends 2 (workers - 1) / workers of the buffer; 0 workers: a module that exchanges nothing.
    Seconds are not known: DDP overlaps and hides them.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    payload = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    coordinates = sum(parameter.numel() for parameter in trained)
    if not workers:
        return Volume(coordinates)
    moved = 2 * (workers - 1) * payload // workers
    return Volume(coordinates, payload, moved, moved)
