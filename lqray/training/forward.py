"""Forward passes, computed as the model's options say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lqray.experiment.options.model import ModelOptions
from lqray.training.dataset import Batch
from lqray.training.tasks import Task


def prepared(network: nn.Module, options: ModelOptions) -> nn.Module:
    """The network, changed in place, for `dtype`, `channels_last` and `compile`; names of parameters stay."""
    if options.dtype == "bf16":
        _to_bfloat16(network)
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        network.compile()
    return network


def _to_bfloat16(network: nn.Module) -> None:
    """Parameters and buffers of floating point, but for those of layers with running statistics (BatchNorm): an average
    in bfloat16 would stop moving, and torch wants the weights of these layers in the same type."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.bfloat16)


def seed_pass(seed: int, device: torch.device) -> None:
    """Begin the randomness of a forward pass on this device anew, as torch.manual_seed does for all devices; that one
    also writes down where it was called from, which takes a quarter of a millisecond, in every step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


def outputs(model: nn.Module, inputs: Tensor, options: ModelOptions) -> Tensor:
    """float32 (B, ...) for inputs (B, ...): what the model gives, or its `logits` where it gives an object of several
    things, as models of Hugging Face's transformers do."""
    if options.dtype == "bf16" and inputs.is_floating_point():
        inputs = inputs.to(torch.bfloat16)
    if options.channels_last and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=options.amp == "bf16"):
        out = model(inputs)
    given: Tensor = getattr(out, "logits", out)
    return given.float()


@dataclass(frozen=True)
class Objective:
    """What is made smaller: a task's loss of a batch, computed in `pieces` one after the other to save memory."""

    task: Task
    options: ModelOptions
    pieces: int = 1

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Tensor]:
        """Shares () of the pieces in the mean loss over a batch, their sum; to be gone backward through before the next
        one is asked for."""
        inputs, targets = batch
        for part, wanted in zip(inputs.chunk(self.pieces), targets.chunk(self.pieces), strict=True):
            yield self.task.loss(outputs(model, part, self.options), wanted) / self.pieces
