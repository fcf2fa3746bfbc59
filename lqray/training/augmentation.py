"""Random changes of training images: whole batches at a time, on the batch's device, each image its own.

The few random numbers that an image needs are drawn on the CPU from the given seed, so that a batch is changed alike on
any device, and nothing else is random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""From pixels, uint8 (B, C, H, W), and a source of random numbers on the CPU, to changed ones of the same type."""

PADDING = 4
"""Black pixels added on every side before a crop."""
DEGREES, SHIFT, SCALE = 15.0, 0.1, (0.9, 1.1)
"""Of the random affine map: rotation to either side, shift as a share of width and height, size."""
JITTER = (0.8, 1.2)
"""Factors of brightness, contrast and saturation."""


def augment(pixels: Tensor, steps: Sequence[Augmentation], seed: int) -> Tensor:
    """`pixels`, uint8 (B, C, H, W), after `steps`, by random numbers of `seed`, unsigned 64-bit."""
    generator = torch.Generator().manual_seed(seed)
    for step in steps:
        pixels = step(pixels, generator)
    return pixels


def crop(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image cut out at a random place of itself, padded with PADDING black pixels on every side."""
    rows, columns = torch.randint(0, 2 * PADDING + 1, (2, len(pixels)), generator=generator).to(pixels.device)
    return crop_at(pixels, rows, columns)


def crop_at(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Each image of `pixels`, (B, C, H, W), cut out of its padded self at its row and column, int64 (B,), in 0 to
    2 PADDING."""
    height, width = pixels.shape[2:]
    padded = F.pad(pixels, (PADDING,) * 4)
    places = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: every crop of every image
    return places[torch.arange(len(pixels), device=pixels.device), :, rows, columns]


def flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability 1/2."""
    mirrored = torch.randint(0, 2, (len(pixels),), generator=generator).to(pixels.device, torch.bool)
    return torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)


def affine(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned, shifted and scaled at random around its centre; what comes from outside is black."""
    angle, right, down, size = torch.rand(4, len(pixels), generator=generator)
    maps = affine_maps(
        (2 * angle - 1) * math.radians(DEGREES),
        (2 * right - 1) * SHIFT,
        (2 * down - 1) * SHIFT,
        SCALE[0] + (SCALE[1] - SCALE[0]) * size,
        pixels.shape[2] / pixels.shape[3],
    )
    grid = F.affine_grid(maps.to(pixels.device), list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels.to(torch.float32), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round_().to(torch.uint8)


def affine_maps(angle: Tensor, right: Tensor, down: Tensor, size: Tensor, aspect: float) -> Tensor:
    """float32 (B, 2, 3) for torch's affine_grid, which wants the map from output to input in units of half the width
    and half the height. angle: radians, clockwise. right, down: shift as a share of width and height. size: factor of
    lengths. aspect: height over width."""
    cosine, sine = angle.cos() / size, angle.sin() / size
    linear = torch.stack([cosine, sine * aspect, -sine / aspect, cosine], dim=1).view(-1, 2, 2)
    shift = 2 * torch.stack([right, down], dim=1)[:, :, None]
    return torch.cat([linear, -linear @ shift], dim=2)


def jitter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation of each image, C = 3, changed in this order by random factors."""
    factors = JITTER[0] + (JITTER[1] - JITTER[0]) * torch.rand(3, len(pixels), generator=generator)
    return jitter_by(pixels, *factors.to(pixels.device))


def jitter_by(pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """`pixels` with the given factors, (B,), as torchvision defines them: brightness scales, contrast moves away from
    the mean grey of the image, saturation away from the grey of the pixel; each ends in 0 to 255."""
    values = (pixels * brightness.view(-1, 1, 1, 1)).clamp_(0, 255)
    mean = _grey(values).mean(dim=(1, 2, 3), keepdim=True)
    values = mean.lerp(values, contrast.view(-1, 1, 1, 1)).clamp_(0, 255)
    values = _grey(values).lerp(values, saturation.view(-1, 1, 1, 1)).clamp_(0, 255)
    return values.round_().to(torch.uint8)


def _grey(values: Tensor) -> Tensor:
    """Luma of ITU-R BT.601, (B, 1, H, W)."""
    red, green, blue = values.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def chosen_steps(name: str, flips: bool) -> tuple[Augmentation, ...]:
    """The steps of an augmentation by its name in YAML: none, standard or strong. flips: whether a mirrored image is
    still of its class."""
    standard = (crop, flip) if flips else (crop,)
    return {"none": (), "standard": standard, "strong": (*standard, affine, jitter)}[name]
