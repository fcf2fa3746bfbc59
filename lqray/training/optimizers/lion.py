"""Lion: steps along the sign of an average of gradients (Chen et al. 2023, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lqray.experiment.options.optimizer import LionOptions
from lqray.training.closure import loss_of
from lqray.training.decayed import parameter_groups


class Lion(torch.optim.Optimizer):
    """m <- beta2 m + (1 - beta2) g, after w <- w - lr (sign(beta1 m + (1 - beta1) g) + weight_decay w)."""

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As of torch.optim.Optimizer."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, weight.grad, group["lr"], group["betas"], group["weight_decay"])
        return loss

    def _step(self, weight: Tensor, gradient: Tensor, lr: float, betas: tuple[float, float], decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["average"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        average: Tensor = state["average"]
        direction = average.lerp(gradient, 1 - betas[0]).sign_()
        weight.mul_(1 - lr * decay).add_(direction, alpha=-lr)
        average.lerp_(gradient, 1 - betas[1])


def build(options: LionOptions, network: nn.Module) -> Lion:
    """Over all parameters."""
    return Lion(
        parameter_groups(network.parameters(), options),
        options.lr,
        (options.beta1, options.beta2),
        options.weight_decay,
    )
