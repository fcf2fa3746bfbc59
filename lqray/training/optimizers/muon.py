"""Muon (Jordan et al. 2024): momentum, orthogonalized by Newton-Schulz iterations, for weights of two dimensions; AdamW
for all others, and for embeddings, whose rows are looked up and not multiplied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.options.optimizer import MuonOptions
from lqray.training.closure import loss_of
from lqray.training.decayed import parameter_groups


class Together(torch.optim.Optimizer):
    """Several optimizers, each over parameters of its own, as one: its groups are theirs, one after the other."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for one in optimizers for group in one.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Groups, which schedules write to, are the same objects here and there."""
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As of torch.optim.Optimizer."""
        loss = loss_of(closure)
        for one in self.optimizers:
            one.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """{"optimizers": each one's}."""
        return {"optimizers": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of as many optimizers, over as many parameters each."""
        for one, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            one.load_state_dict(state)
        self._share()


def build(options: MuonOptions, network: nn.Module) -> Together:
    """Raises UnfitTrialError for a network without any weight for Muon."""
    looked_up = {id(layer.weight) for layer in network.modules() if isinstance(layer, nn.Embedding | nn.EmbeddingBag)}
    matrices = [one for one in network.parameters() if one.ndim == 2 and id(one) not in looked_up]
    chosen = set(map(id, matrices))
    others = [one for one in network.parameters() if id(one) not in chosen]
    if not matrices:
        raise UnfitTrialError(
            "optimizer.name: found muon, and a network without weights of two dimensions; allowed: a network that has "
            "fully connected layers, or another optimizer, such as adamw"
        )
    muon = torch.optim.Muon(
        matrices,
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        adjust_lr_fn=options.adjust_lr,
    )
    if not others:
        return Together(muon)
    adamw = torch.optim.AdamW(
        parameter_groups(others, options),
        lr=options.adamw_lr or options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
    )
    return Together(muon, adamw)
