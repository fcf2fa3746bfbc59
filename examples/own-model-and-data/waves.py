"""A model of one's own: sines and cosines of the inputs, then residual blocks."""

import torch
from blocks import Residual
from pydantic import BaseModel, Field
from torch import nn


class OPTIONS(BaseModel):
    """What stands below `model.options`."""

    width: int = Field(default=32, ge=1, le=4096)
    blocks: int = Field(default=1, ge=0, le=20)
    frequency: float = Field(default=1.0, gt=0)


class Waves(nn.Module):
    """cos and sin of random projections (Rahimi and Recht 2007), which are no parameters, but part of the state."""

    def __init__(self, inputs, waves, frequency):
        super().__init__()
        self.register_buffer("projection", frequency * torch.randn(inputs, waves))

    def forward(self, x):
        phases = x.flatten(1) @ self.projection
        return torch.cat([phases.cos(), phases.sin()], dim=1)


def build(options, shape, classes):
    """Inputs (N, *shape), outputs (N, classes). Everything random comes from torch's generator, which lqray seeds."""
    return nn.Sequential(
        Waves(torch.Size(shape).numel(), options.width, options.frequency),
        nn.Linear(2 * options.width, options.width),
        *(Residual(options.width) for _ in range(options.blocks)),
        nn.ReLU(),
        nn.Linear(options.width, classes),
    )
