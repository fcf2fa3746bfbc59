"""What torch's optimizers may be given for a step: a function that evaluates the model again."""

from __future__ import annotations

from collections.abc import Callable

import torch


def loss_of(closure: Callable[[], float] | None) -> float | None:
    """What it returns, gradients being found; None without one. For a `step` that finds no gradients itself."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
