"""What steps of workers that train alone have in common, however they come together again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lqray.communication import Volume
from lqray.communication.wire.collectives import gather_now
from lqray.training.clipping import clipping_metrics
from lqray.training.dataset import Batch
from lqray.training.nonfinite import DivergedError
from lqray.training.steps.setting import MOST_SKIPPED, Progress, Setting
from lqray.training.steps.traffic import Traffic
from lqray.training.steps.worker import LocalWorker


class StepsApart(ABC):
    """Its methods are those of `lqray.training.steps.setting.Steps`, but for states."""

    def __init__(self, setting: Setting, progress: Progress, workers: Sequence[LocalWorker]) -> None:
        self._setting, self._progress, self._wires = setting, progress, setting.wires
        self._workers = workers
        self._traffic = Traffic(sum(one.numel() for one in setting.wires.anchors.values()))
        self._norms: list[Tensor] = []

    def take(self, iteration: int, feed: Iterator[Batch], lr: float, measured: bool) -> Tensor:
        """See `Steps.take`."""
        losses = []
        self._norms = []
        self._traffic.begin_step()
        for worker in self._workers:
            with self._setting.timer.timed("data"):
                batch = next(feed)
            loss, norm = worker.step(iteration, batch, lr)
            losses.append(loss)
            if norm is not None:
                self._norms.append(norm)
        self._exchange(iteration + 1)
        return torch.stack(losses)

    @abstractmethod
    def _exchange(self, done: int) -> None:
        """What is due after so many steps. Collective."""

    def volume(self) -> Volume:
        """See `Steps.volume`."""
        return self._traffic.volume

    def wire(self) -> dict[str, float]:
        """See `Steps.wire`: means over all steps so far."""
        return self._traffic.metrics()

    def telemetry(self, measured: bool) -> dict[str, float]:
        """See `Steps.telemetry`."""
        metrics = self.wire() if measured else {}
        most = self._setting.trial.optimizer.clip_norm
        if measured and most is not None:
            norm, count = self._sum_of([sum(map(float, self._norms)), len(self._norms)])
            metrics |= clipping_metrics(torch.tensor(norm / count), most) if count else {}
        return metrics

    def finish(self) -> None:
        """See `Steps.finish`."""
        self._wires.finish()

    def _check_finite(self, what: str, means: Mapping[str, Tensor], done: int) -> None:
        """Means are equal on all ranks, and so is what comes of it."""
        finite = torch.stack([mean.isfinite().all() for mean in means.values()])
        if bool(finite.all()):
            return
        found = [name for name, good in zip(means, finite.tolist(), strict=True) if not good]
        shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        raise DivergedError(
            f"{what} of {shown} is not finite at iteration {done - 1}; try a smaller lr, a smaller "
            "exchange.every, or schedule.on_nonfinite: skip, which leaves out a worker's own steps"
        )

    def _count_skipped(self) -> None:
        """Steps that workers left out, all ranks'. Raises DivergedError on all where one has left out too many."""
        if self._setting.schedule.on_nonfinite != "skip":
            return
        own = torch.tensor([[one.skipped, one.in_row] for one in self._workers], device=self._setting.device)
        found = gather_now(own, self._wires.group)
        self._progress.skipped, self._progress.in_row = int(found[:, 0].sum()), int(found[:, 1].max())
        if self._progress.in_row >= MOST_SKIPPED:
            worker = int(found[:, 1].argmax())
            raise DivergedError(
                f"worker {worker} skipped its last {self._progress.in_row} steps, whose gradients were not finite; "
                f"allowed: fewer than {MOST_SKIPPED} in a row; try a smaller lr"
            )

    def _sum_of(self, values: list[float]) -> list[float]:
        """Over all ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self._setting.device)
        dist.all_reduce(total, group=self._wires.group)
        sums: list[float] = total.tolist()
        return sums
