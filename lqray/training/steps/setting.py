"""What steps of every kind have in common, and what the loop wants of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lqray.communication import Volume
from lqray.experiment.options.schedule import ScheduleOptions
from lqray.experiment.schema import Trial
from lqray.experiment.seeding import derive_seed
from lqray.training.batches import Batches
from lqray.training.dataset import Batch, Dataset
from lqray.training.forward import Objective, seed_pass
from lqray.training.telemetry import PhaseTimer
from lqray.training.wires import Wires

MOST_SKIPPED = 100


@dataclass
class Progress:
    """What a run knows of itself beside its tensors; saved with them. best: largest score of its headline metric so
    far. skipped: steps left out, `in_row` of them just now. lost: metrics whose latest value is NaN."""

    best: float = -math.inf
    skipped: int = 0
    in_row: int = 0
    lost: tuple[str, ...] = ()

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Progress:
        """What a checkpoint has, also one of before there were other tasks than classification."""
        return cls(**{"best" if key == "best_accuracy" else key: value for key, value in saved.items()})


@dataclass(frozen=True)
class Setting:
    """What steps are made of. schedule: the trial's, in iterations."""

    trial: Trial
    schedule: ScheduleOptions
    wires: Wires
    device: torch.device
    dataset: Dataset
    batches: Batches
    objective: Objective
    timer: PhaseTimer

    @property
    def iterations(self) -> int:
        """Of the run."""
        assert self.schedule.iterations is not None
        return self.schedule.iterations

    def backward(
        self,
        model: nn.Module,
        batch: Batch,
        iteration: int,
        worker: int,
        around: Callable[[bool], AbstractContextManager[None]] = lambda last: nullcontext(),
        among: int = 1,
    ) -> Tensor:
        """A worker's forward and backward pass, which adds the gradients of its mean loss, divided by `among`, to the
        parameters'; the loss (). Randomness of the forward pass is a function of (seed, iteration, worker). around:
        what each piece of the batch is computed within, given whether it is the last."""
        seed_pass(derive_seed(self.trial.seed, "forward", iteration, worker), self.device)
        losses = self.objective.losses(model, batch)
        total = torch.zeros((), device=self.device)
        for piece in range(1, self.objective.pieces + 1):
            with around(piece == self.objective.pieces):
                with self.timer.timed("forward"):
                    loss = next(losses)
                with self.timer.timed("backward"):
                    (loss / among if among > 1 else loss).backward()
            total += loss.detach()
        return total


class Steps(Protocol):
    """Steps of a run, each taken by all ranks. Evaluated and saved is `Setting.wires.network`, alike on all ranks."""

    def take(self, iteration: int, feed: Iterator[Batch], lr: float, measured: bool) -> Tensor:
        """One optimizer step of every worker. Losses of the workers here, (workers,). measured: whether telemetry of
        this step is wanted. Collective. Raises DivergedError."""
        ...

    def volume(self) -> Volume:
        """What exchanges moved whose results this step applied."""
        ...

    def wire(self) -> dict[str, float]:
        """`wire/...` of a step."""
        ...

    def telemetry(self, measured: bool) -> dict[str, float]:
        """What was measured of the step just taken, beside losses. Collective."""
        ...

    def settle(self) -> None:
        """Call before the network is evaluated, compared or saved. Collective."""
        ...

    def finish(self) -> None:
        """Call after the last step. Raises as `GradientExchange.finish`."""
        ...

    def rehearse(self) -> None:
        """Call before a checkpoint is loaded: what the run that is continued did once at its beginning."""
        ...

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What decides all further steps beside the network: (equal on all ranks, this rank's own). Collective."""
        ...

    def load_state_dict(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the network is there already."""
        ...

    def regrouped(self, owns: Sequence[Mapping[str, Any]], done: int) -> dict[str, Any]:
        """To load here after `done` steps, of each rank's own in the order of ranks, where there were more or fewer of
        them. Raises RegroupingError where further steps would be other bits than theirs."""
        ...


def set_rates(optimizer: torch.optim.Optimizer, ratios: list[float], lr: float) -> None:
    """Give each parameter group its ratio of a learning rate."""
    for parameters, ratio in zip(optimizer.param_groups, ratios, strict=True):
        parameters["lr"] = ratio * lr
