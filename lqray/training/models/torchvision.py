"""Any classifier of torchvision.models, by its name there."""

from __future__ import annotations

from typing import Any

from torch import nn

from lqray.experiment.errors import did_you_mean
from lqray.experiment.options.model import TorchvisionOptions
from lqray.training import vision


def build(options: TorchvisionOptions, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Input (N, 3, height, width), as large as the architecture wants; output (N, classes). With pretrained weights,
    which torchvision downloads, the last layer is new unless `classes` is 1000.

    Raises ValueError for an architecture that torchvision does not have, for images without 3 channels, and for small
    images where it is no ResNet, or pretrained.
    """
    models: Any = vision.torchvision.models
    known = [name for name in models.list_models(module=models) if name not in _WITH_AUXILIARY_OUTPUTS]
    if options.architecture not in known:
        hint = did_you_mean(options.architecture, known)
        raise ValueError(
            f"model.architecture is {options.architecture!r}; allowed: {', '.join(known)}"
            + (f"; {hint}" if hint else "")
        )
    if shape[0] != 3:
        raise ValueError(f"torchvision's models take images of 3 channels; these have {shape[0]}")
    if not options.pretrained:
        built: nn.Module = models.get_model(options.architecture, weights=None, num_classes=classes)
        return _for_small_images(built, options.architecture) if options.small_images else built
    if options.small_images:
        raise ValueError(
            "model.small_images is true beside pretrained, whose first layer is another; allowed: one of them"
        )
    built = models.get_model(options.architecture, weights="DEFAULT")
    if classes != 1000:
        name, last = [(name, part) for name, part in built.named_modules() if isinstance(part, nn.Linear)][-1]
        parent, _, own = name.rpartition(".")
        setattr(built.get_submodule(parent), own, nn.Linear(last.in_features, classes))
    return built


def _for_small_images(network: nn.Module, architecture: str) -> nn.Module:
    first = getattr(network, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not hasattr(network, "maxpool"):
        raise ValueError(f"model.small_images is true for {architecture}; allowed: with a ResNet, such as resnet18")
    smaller = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(smaller.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = smaller, nn.Identity()
    return network


_WITH_AUXILIARY_OUTPUTS = {"googlenet", "inception_v3"}  # in training they return more than logits
