"""Residual networks for small images (He et al. 2016, section 4.2): three stages of 16, 32 and 64 channels, shortcuts
without parameters (option A: every second pixel, new channels zero)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from lqray.experiment.options.model import ResnetOptions


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalization, around them the shortcut. stride: of the first."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        out = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.added or self.stride != 1:
            before = self.added // 2
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        return relu(out + x)


def build(options: ResnetOptions, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Input (N, channels, height, width); output (N, classes). Convolutions start as in He et al. 2015."""
    blocks = (options.depth - 2) // 6
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for stage, outputs in enumerate((16, 32, 64)):
        for index in range(blocks):
            layers.append(Block(inputs, outputs, 2 if stage and not index else 1))
            inputs = outputs
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network
