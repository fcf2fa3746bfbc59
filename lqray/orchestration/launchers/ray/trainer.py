"""Ray Train's trainer in fewer processes. Imports Ray at once: import it where Ray is needed anyway."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController

_WITHOUT = (PlacementGroupCleanerCallback, DatasetsCallback)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """As Ray's, but for three processes of each worker group, every one of which imports for seconds before a trial
    begins: the controller works in the process that calls `fit`, which waits for it anyway and whose end is the group's
    end; there is no manager of datasets, since none are Ray's; and nothing that asks in vain once a second for places
    of the dead (see places.py)."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, _WITHOUT)]

    def _initialize_and_run_controller(self, **options: Any) -> Result:
        controller = TrainController(**options)
        asyncio.run(controller.run())
        return controller.get_result()
