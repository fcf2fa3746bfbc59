"""What a trial measured, on its way to the store. Apart from the rest, so that the process that delivers it needs no
torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """Metrics of one step; time in milliseconds since the epoch."""

    step: int
    time: int
    metrics: dict[str, float]
