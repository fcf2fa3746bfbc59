"""Wide residual networks (Zagoruyko and Komodakis 2016): pre-activation blocks, stages of 16, 32 and 64 times `width`
channels, 1x1 convolutions where a shortcut changes its size."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from lqray.experiment.options.model import WideResnetOptions


class Block(nn.Module):
    """Normalize, ReLU, 3x3 convolution; twice, with dropout between. stride: of the first."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        first = relu(self.bn1(x))
        out: Tensor = self.conv2(self.dropout(relu(self.bn2(self.conv1(first)))))
        return out + (x if self.shortcut is None else self.shortcut(first))


def build(options: WideResnetOptions, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Input (N, channels, height, width); output (N, classes). Convolutions start as in He et al. 2015."""
    blocks = (options.depth - 4) // 6
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)]
    inputs = 16
    for stage, channels in enumerate((16, 32, 64)):
        for index in range(blocks):
            stride = 2 if stage and not index else 1
            layers.append(Block(inputs, channels * options.width, stride, options.dropout))
            inputs = channels * options.width
    head = (nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    network = nn.Sequential(*layers, *head)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return network
