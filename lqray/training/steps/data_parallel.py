"""Steps along the mean of all workers' gradients, which are exchanged at each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from lqray.communication import Volume
from lqray.experiment.seeding import derive_seed
from lqray.training import masters
from lqray.training.clipping import clip, clipping_metrics
from lqray.training.dataset import Batch
from lqray.training.extra_gradients import extra_gradient, kept_buffers
from lqray.training.nonfinite import DivergedError, all_finite, diverged
from lqray.training.optimizers import lr_ratios
from lqray.training.steps.setting import MOST_SKIPPED, Progress, Setting, set_rates
from lqray.training.telemetry import quantizer_metrics, wire_metrics


class DataParallel:
    """See the module; `lqray.training.steps.setting.Steps` says what its methods do."""

    def __init__(self, setting: Setting, progress: Progress) -> None:
        self._setting, self._progress = setting, progress
        self._wires, self._network = setting.wires, setting.wires.network
        self.optimizer = masters.build(setting.trial, self._network)
        self._lr_ratios = lr_ratios(self.optimizer, setting.trial.optimizer.lr)
        self._norm: Tensor | None = None
        if self._wires.exchange:
            self._wires.exchange.follow(self.optimizer)

    def take(self, iteration: int, feed: Iterator[Batch], lr: float, measured: bool) -> Tensor:
        """See `Steps.take`."""
        setting, wires = self._setting, self._wires
        skips = setting.schedule.on_nonfinite == "skip"
        set_rates(self.optimizer, self._lr_ratios, lr)
        wires.begin_step(iteration, measured, keep=iteration + 1 == setting.iterations and wires.group.rank() == 0)
        before = {name: buffer.clone() for name, buffer in self._network.named_buffers()} if skips else {}
        losses = self._backward(iteration, feed)
        self._update_levels(iteration)
        with setting.timer.timed("optimizer"):
            self._norm = None
            if all_finite(self._network):
                if setting.trial.optimizer.clip_norm is not None:
                    self._norm = clip(self._network, setting.trial.optimizer.clip_norm)
                self.optimizer.step()
                self._progress.in_row = 0
            elif skips:
                self._skip(iteration, losses, before)
            else:
                raise diverged(self._network, iteration, losses)
        return losses

    def volume(self) -> Volume:
        """See `Steps.volume`."""
        return self._wires.volume()

    def wire(self) -> dict[str, float]:
        """See `Steps.wire`."""
        return wire_metrics(self.volume())

    def telemetry(self, measured: bool) -> dict[str, float]:
        """See `Steps.telemetry`."""
        if not measured:
            return {}
        metrics, most = self.wire(), self._setting.trial.optimizer.clip_norm
        if self._norm is not None and most is not None:
            metrics |= clipping_metrics(self._norm, most)
        if self._wires.exchange:
            metrics |= quantizer_metrics(self._wires.exchange, self._wires.group, self._setting.device)
        return metrics

    def settle(self) -> None:
        """See `Steps.settle`."""
        self._wires.share_buffers()

    def finish(self) -> None:
        """See `Steps.finish`."""
        self._wires.finish()

    def rehearse(self) -> None:
        """See `Steps.rehearse`. DDP lays its buckets out anew after the first backward pass, in the order in which
        gradients came. The run that is continued did so at iteration 0; so does this one, before it takes that run's
        state."""
        setting = self._setting
        self._wires.begin_step(0, False)
        self._backward(0, setting.dataset.feed(setting.batches.draws(0, 1, self._wires.workers)))
        self.optimizer.zero_grad()

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Steps.state_dict`."""
        return {"optimizer": self.optimizer.state_dict()}, dict(self._wires.state_dict())

    def load_state_dict(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """See `Steps.load_state_dict`."""
        self.optimizer.load_state_dict(shared["optimizer"])
        self._wires.load_state_dict(dict(own))

    def regrouped(self, owns: Sequence[Mapping[str, Any]], done: int) -> dict[str, Any]:
        """See `Steps.regrouped`."""
        return dict(self._wires.regrouped(owns, done))

    def _backward(self, iteration: int, feed: Iterator[Batch]) -> Tensor:
        """The workers' forward and backward passes; their losses (workers,)."""
        self.optimizer.zero_grad()
        losses = []
        for worker in self._wires.workers:
            with self._setting.timer.timed("data"):
                batch = next(feed)
            losses.append(self._backward_of(worker, batch, iteration))
        return torch.stack(losses)

    def _backward_of(self, worker: int, batch: Batch, iteration: int) -> Tensor:
        """One worker's forward and backward pass; its loss. The last worker of a process starts the exchange.

        Of the workers of a process only the first leaves its mark on BatchNorm's statistics, which DDP takes from rank
        0: it does not matter how many share it.
        """
        wires = self._wires
        first, last = worker == wires.workers[0], worker == wires.workers[-1]
        # A quantized exchange takes the workers' gradients one by one; any other takes their mean.
        among = 1 if wires.exchange else len(wires.workers)
        with ExitStack() as stack:
            if not first:
                stack.enter_context(kept_buffers(wires.model))
            loss = self._setting.backward(
                wires.model, batch, iteration, worker, lambda last_piece: wires.pass_of(last and last_piece), among
            )
        if wires.exchange and not last:
            wires.exchange.set_aside()
        return loss

    def _update_levels(self, iteration: int) -> None:
        setting, exchange, workers = self._setting, self._wires.exchange, self._wires.workers
        if not exchange:
            return
        for worker, sample in itertools.product(workers, range(exchange.fresh_samples(iteration))):
            chosen = setting.batches.extra_indices(iteration, sample, worker)
            seed = derive_seed(setting.trial.seed, "extra forward", iteration, sample, worker)
            batch = setting.dataset.train_batch(chosen, seed)
            gradient = extra_gradient(self._network, setting.objective, batch, seed)
            exchange.observe(gradient, workers.index(worker))
        exchange.update_levels()

    def _skip(self, iteration: int, losses: Tensor, buffers: dict[str, Tensor]) -> None:
        """Leave a step out: parameters, optimizer and BatchNorm's statistics stay as they were."""
        self._progress.skipped += 1
        self._progress.in_row += 1
        if self._progress.in_row >= MOST_SKIPPED:
            last = diverged(self._network, iteration, losses)
            raise DivergedError(f"{MOST_SKIPPED} steps in a row were skipped; of the last: {last}")
        with torch.no_grad():
            for name, buffer in self._network.named_buffers():
                buffer.copy_(buffers[name])
