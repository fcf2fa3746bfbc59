"""Ray Train's trainer without its actor that frees the places of a dead controller: see places.py. Imports Ray at once:
import it where Ray is needed anyway."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class Trainer(TorchTrainer):  # type: ignore[misc]
    """As Ray's. One process less for each worker group, which asked in vain once a second."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]
