"""What the model is made of. An edit here is another code of the model, and lqray says so."""

from torch import nn


class Residual(nn.Module):
    """x + linear(relu(layer_norm(x)))."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.inner(x)
