"""A worker that trains alone between exchanges."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lqray.training import masters
from lqray.training.anchors import Anchors
from lqray.training.clipping import clip
from lqray.training.dataset import Batch
from lqray.training.nonfinite import all_finite
from lqray.training.optimizers import lr_ratios
from lqray.training.steps.setting import Setting, set_rates


class LocalWorker:
    """Parameters, statistics of BatchNorm and an optimizer of its own, from the network that all workers share.

    skipped: steps left out for a gradient that is not finite, `in_row` of them just now.
    """

    def __init__(self, setting: Setting, number: int) -> None:
        self._setting, self._number = setting, number
        self.network = copy.deepcopy(setting.wires.network)
        if setting.trial.model.compile:
            self.network.compile()
        self._optimizer = masters.build(setting.trial, self.network)
        self._lr_ratios = lr_ratios(self._optimizer, setting.trial.optimizer.lr)
        self._held = {
            name: masters.stepped(self._optimizer, parameter)
            for name, parameter in self.network.named_parameters()
            if parameter.requires_grad
        }
        self.skipped = self.in_row = 0

    def step(self, iteration: int, batch: Batch, lr: float) -> tuple[Tensor, Tensor | None]:
        """One step along its own gradient: (loss (), norm of the gradient () where it is clipped). With `on_nonfinite:
        skip` a gradient that is not finite changes nothing; with `stop` it goes where it goes, until all ranks see it.
        """
        setting, most = self._setting, self._setting.trial.optimizer.clip_norm
        skips = setting.schedule.on_nonfinite == "skip"
        before = {name: buffer.clone() for name, buffer in self.network.named_buffers()} if skips else {}
        set_rates(self._optimizer, self._lr_ratios, lr)
        self._optimizer.zero_grad()
        loss = self._backward(iteration, batch)
        with setting.timer.timed("optimizer"):
            if skips and not all_finite(self.network):
                self._skip(before)
                return loss, None
            norm = None if most is None else clip(self.network, most)
            self._optimizer.step()
            self.in_row = 0
        return loss, norm

    def _backward(self, iteration: int, batch: Batch) -> Tensor:
        return self._setting.backward(self.network, batch, iteration, self._number)

    @torch.no_grad()
    def parameters(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of these names, at the precision in which they are stepped."""
        return {name: self._held[name].detach() for name in names}

    @torch.no_grad()
    def take_over(self, anchors: Anchors, names: Iterable[str], mixing: float) -> None:
        """Go on from these anchors, with the share `mixing` of its own parameters."""
        for name in names:
            own, shared = self._held[name], anchors[name]
            own.copy_(mixing * own + (1 - mixing) * shared if mixing else shared)
        masters.write(self._optimizer)

    def state_dict(self) -> dict[str, Any]:
        """All that decides its next steps."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "skipped": self.skipped,
            "in_row": self.in_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.skipped, self.in_row = state["skipped"], state["in_row"]

    def _skip(self, buffers: Mapping[str, Tensor]) -> None:
        self.skipped += 1
        self.in_row += 1
        with torch.no_grad():
            for name, buffer in self.network.named_buffers():
                buffer.copy_(buffers[name])
