"""Gradients that are NaN or infinite, found before they reach the parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lqray.communication import RaisedByAllError


class DivergedError(RaisedByAllError):
    """The training loss, or a gradient, is NaN or infinite."""


def all_finite(network: nn.Module) -> bool:
    """Whether every gradient is. They are means over all workers, equal on all ranks, and so is the answer."""
    norms = torch._foreach_norm([p.grad for p in network.parameters() if p.grad is not None], float("inf"))
    return not norms or bool(torch.stack([norm.float() for norm in norms]).isfinite().all())


def diverged(network: nn.Module, iteration: int, loss: Tensor) -> DivergedError:
    """An error that names the step and the tensors. loss: of the workers here, (workers,)."""
    found = [name for name, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    return DivergedError(
        f"the gradient of {shown} is not finite at iteration {iteration} (loss of the workers here: "
        f"{', '.join(f'{value:g}' for value in loss.tolist())}); try a smaller lr, or schedule.on_nonfinite: skip"
    )
