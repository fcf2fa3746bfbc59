"""Gradients taken beside the training: what the model, the optimizer and random numbers hold stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lqray.training.data import ImageClassification


def extra_gradient(network: nn.Module, dataset: ImageClassification, chosen: Tensor) -> list[Tensor]:
    """The rank's own gradient of the mean loss over the training examples `chosen` (B,): a tensor for each parameter
    that is trained, zeros for those the loss does not depend on. No gradient is exchanged."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    images, labels = dataset.normalized(dataset.train.pixels[chosen]), dataset.train.labels[chosen]
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices):
        loss = cross_entropy(network(images), labels)
        # torch.autograd.grad leaves .grad alone and so never starts DDP's exchange.
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
