"""The parameters that workers share where each trains alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

Anchors = Mapping[str, nn.Parameter]
"""By name, of the parameters that are trained: what all workers share, alike on all ranks."""


def anchors_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """A network's parameters themselves, and for one in bfloat16 a copy in float32, as its optimizer has."""
    return {
        name: nn.Parameter(one.detach().to(torch.float32)) if one.dtype == torch.bfloat16 else one
        for name, one in network.named_parameters()
        if one.requires_grad
    }


@torch.no_grad()
def write_anchors(anchors: Anchors, names: Iterable[str], network: nn.Module) -> None:
    """Into the network's parameters that are not the anchors themselves: rounded to the nearest."""
    parameters = dict(network.named_parameters())
    for name in names:
        if parameters[name] is not anchors[name]:
            parameters[name].copy_(anchors[name])
