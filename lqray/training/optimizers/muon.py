"""Muon (Jordan et al. 2024): momentum, orthogonalized by Newton-Schulz iterations, for weights of two dimensions; AdamW
for all others, for embeddings, whose rows are looked up and not multiplied, and for what turns their width back into
their rows, the head of a language model."""

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
    of_words = _embeddings_and_head(network)
    matrices = [one for one in network.parameters() if one.ndim == 2 and id(one) not in of_words]
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


def _embeddings_and_head(network: nn.Module) -> set[int]:
    """The ids of their weights. A head is the last linear layer, where it has the shape of an embedding."""
    embeddings = [layer.weight for layer in network.modules() if isinstance(layer, nn.Embedding | nn.EmbeddingBag)]
    found = set(map(id, embeddings))
    linear = [layer.weight for layer in network.modules() if isinstance(layer, nn.Linear)]
    if linear and linear[-1].shape in {weight.shape for weight in embeddings}:
        found.add(id(linear[-1]))
    return found
