"""Gradients and forward passes beside the training: what the model, the optimizer and random numbers hold stays as it
is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lqray.training.dataset import Batch
from lqray.training.forward import Objective, seed_pass


@contextmanager
def kept_buffers(network: nn.Module) -> Iterator[None]:
    """Give the network's buffers (BatchNorm's running statistics) back the values that they have now."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])


def extra_gradient(network: nn.Module, objective: Objective, batch: Batch, seed: int) -> dict[str, Tensor]:
    """A worker's own gradient of the mean loss over a batch: a tensor for each parameter that is trained, zeros for
    those the loss does not depend on. No gradient is exchanged. seed: of dropout."""
    parameters = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    device = batch[0].device
    sums: dict[str, Tensor] = {}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), kept_buffers(network):
        seed_pass(seed, device)
        for loss in objective.losses(network, batch):
            # torch.autograd.grad leaves .grad alone and so never starts DDP's exchange.
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    sums[name] = sums[name] + gradient if name in sums else gradient
    return {name: sums[name] if name in sums else torch.zeros_like(one) for name, one in parameters.items()}
