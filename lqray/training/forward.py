"""Forward passes, computed as the model's options say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lqray.experiment.options.model import ModelOptions


def prepared(network: nn.Module, options: ModelOptions) -> nn.Module:
    """The network, changed in place, for `channels_last` and `compile`; names of parameters stay."""
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        network.compile()
    return network


def seed_pass(seed: int, device: torch.device) -> None:
    """Begin the randomness of a forward pass on this device anew, as torch.manual_seed does for all devices; that one
    also writes down where it was called from, which takes a quarter of a millisecond, in every step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


def logits(model: nn.Module, inputs: Tensor, options: ModelOptions) -> Tensor:
    """float32 (B, classes) for inputs (B, C, H, W)."""
    if options.channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=options.amp == "bf16"):
        out: Tensor = model(inputs)
    return out.float()
