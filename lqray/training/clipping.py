"""Gradients that are scaled down where they are long (Pascanu, Mikolov and Bengio 2013)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def clip(network: nn.Module, most: float) -> Tensor:
    """Scale all gradients of a network, in place, by one factor, so that their global l2 norm is at most `most`; where
    it is, they keep their bits. Returns the norm before: a float32 tensor (), on the device of the gradients, for which
    nothing waits. It is found in float64, so that finite gradients have a norm; one beyond float32 is told as the
    largest number of it.

    Of gradients that are equal on all ranks, as means are, the scaled ones are, too.
    """
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float64)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([each.to(norms[0].device) for each in norms]))
    factor = (most / norm).clamp(max=1.0)
    for device, dtype in {(each.device, each.dtype) for each in gradients}:
        alike = [each for each in gradients if (each.device, each.dtype) == (device, dtype)]
        torch._foreach_mul_(alike, factor.to(device, torch.float32))
    return norm.clamp(max=torch.finfo(torch.float32).max).to(torch.float32)


def clipping_metrics(norm: Tensor, most: float) -> dict[str, float]:
    """What `clip` did, as telemetry: the norm that it returned, and the factor; 1 is not clipped. Waits for a GPU."""
    before = float(norm)
    return {"train/gradient_norm": before, "train/clipped": min(1.0, most / before) if before else 1.0}
