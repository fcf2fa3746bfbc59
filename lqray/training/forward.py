"""Forward passes, computed as the model's options say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lqray.experiment.options import ModelOptions


def prepared(network: nn.Module, options: ModelOptions) -> nn.Module:
    """The network, changed in place, for `channels_last` and `compile`; names of parameters stay."""
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        network.compile()
    return network


def logits(model: nn.Module, inputs: Tensor, options: ModelOptions) -> Tensor:
    """float32 (B, classes) for inputs (B, C, H, W)."""
    if options.channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=options.amp == "bf16"):
        out: Tensor = model(inputs)
    return out.float()
