"""Bytes of exchanges that are not at every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lqray.communication import Volume
from lqray.training.telemetry import wire_metrics


class Traffic:
    """volume: of the exchanges whose results the current step applied. coordinates: of all that is exchanged."""

    def __init__(self, coordinates: int) -> None:
        self._coordinates = coordinates
        self._steps = self._exchanged = 0
        self._total = self.volume = Volume()

    def begin_step(self) -> None:
        """Count a step."""
        self.volume = Volume()
        self._steps += 1

    def add(self, moved: Volume, coordinates: int, silent: bool = False) -> None:
        """An exchange of so many coordinates of the network, whose result the current step applies. silent: that no
        other process had a part in."""
        if silent:
            moved = Volume(moved.coordinates)
        self.volume = self.volume + moved
        self._total = self._total + moved
        self._exchanged += coordinates

    def metrics(self) -> dict[str, float]:
        """`wire/...`, of a step: bytes are means over all steps so far, and ratios are to gradients that are exchanged
        at every step."""
        if not self._exchanged:
            return wire_metrics(Volume(self._coordinates))
        plain = round(self._total.coordinates * self._steps * self._coordinates / self._exchanged)
        metrics = wire_metrics(self._total + Volume(plain - self._total.coordinates))
        return {key: value / self._steps if "bytes" in key else value for key, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"steps": self._steps, "exchanged": self._exchanged, "total": self._total.numbers()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._steps, self._exchanged = state["steps"], state["exchanged"]
        self._total, self.volume = Volume.of(state["total"]), Volume()
