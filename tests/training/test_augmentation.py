import importlib
import math

import pytest
import torch

from lqray.training import augmentation
from lqray.training.augmentation import affine_maps, augment, chosen_steps, crop, crop_at, flip, jitter_by
from lqray.training.vision import torchvision  # before any other import of it

v2 = importlib.import_module("torchvision.transforms.v2.functional")

STEPS = {name: chosen_steps(name, flips=True) for name in ("none", "standard", "strong")}


def pixels(count: int, side: int = 8, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crops_are_those_of_a_loop_over_images():
    batch = pixels(81)
    rows, columns = (places.flatten() for places in torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
    for image, found, row, column in zip(batch, crop_at(batch, rows, columns), rows, columns, strict=True):
        expected = v2.crop(v2.pad(image, [4]), int(row), int(column), 8, 8)
        assert torch.equal(found, expected)


def test_every_crop_and_flip_occurs_about_equally_often():
    """Each image by its own random numbers: 8100 copies of one image give each of the 81 crops about 100 times."""
    batch = pixels(1).expand(8100, -1, -1, -1)
    _, counts = torch.unique(crop(batch, generator(1)), dim=0, return_counts=True)
    assert len(counts) == 81
    assert counts.min() > 60
    assert counts.max() < 145
    flipped = flip(batch, generator(1))
    mirrored = torch.tensor([torch.equal(image, batch[0].flip(2)) for image in flipped])
    same = torch.tensor([torch.equal(image, batch[0]) for image in flipped])
    assert torch.all(mirrored ^ same)
    assert 3800 < int(mirrored.sum()) < 4300


@pytest.mark.parametrize("name", STEPS)
def test_augmentation_is_a_function_of_its_seed(name):
    batch = pixels(16, side=32)
    before, state = batch.clone(), torch.get_rng_state()
    found = augment(batch, STEPS[name], 5)
    assert (found.dtype, found.shape) == (torch.uint8, batch.shape)
    assert torch.equal(found, augment(batch, STEPS[name], 5))
    assert torch.equal(found, augment(batch, STEPS[name], 2**64 - 1)) == (name == "none")
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_affine_maps_are_torchvisions():
    """torchvision's affine with bilinear interpolation, image by image; on a smooth image, up to rounding."""
    ramp = torch.linspace(0, 255, 32)
    image = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.full((32, 32), 200.0)])
    for degrees, right, down, size in (
        (10, 0, 0, 1),
        (0, 0.125, 0, 1),
        (0, 0, 0.125, 1),
        (0, 0, 0, 1.1),
        (-15, 0.1, -0.1, 0.9),
    ):
        maps = affine_maps(*torch.tensor([[math.radians(degrees)], [right], [down], [size]]), aspect=1.0)
        grid = torch.nn.functional.affine_grid(maps, [1, 3, 32, 32], align_corners=False)
        found = torch.nn.functional.grid_sample(image[None], grid, align_corners=False)[0]
        expected = v2.affine(
            image,
            degrees,
            [right * 32, down * 32],
            size,
            [0.0, 0.0],
            interpolation=torchvision.transforms.InterpolationMode.BILINEAR,
        )
        assert (found - expected)[:, 8:-8, 8:-8].abs().max() < 0.05, (degrees, right, down, size)


def test_affine_stays_within_its_limits():
    """A dot in the middle moves by at most SHIFT of the side (and a dot's width), in every direction."""
    batch = torch.zeros(500, 1, 41, 41, dtype=torch.uint8)
    batch[:, :, 20, 20] = 255
    moved = augmentation.affine(batch, generator(0))
    found = moved.sum(dim=(0, 1)).nonzero() - 20
    assert found.min() >= -6
    assert found.max() <= 6
    assert (found.min(0).values <= -3).all()
    assert (found.max(0).values >= 3).all()


def test_colours_change_as_torchvision_changes_them():
    batch = pixels(20)
    brightness, contrast, saturation = 0.8 + 0.4 * torch.rand(3, 20, generator=generator(1))
    found = jitter_by(batch, brightness, contrast, saturation)
    for image, own, *factors in zip(batch / 255, found, brightness, contrast, saturation, strict=True):
        expected = v2.adjust_brightness(image, float(factors[0]))
        expected = v2.adjust_contrast(expected, float(factors[1]))
        expected = v2.adjust_saturation(expected, float(factors[2])) * 255
        assert (own - expected).abs().max() <= 0.51
    one = torch.ones(20)
    assert torch.equal(jitter_by(batch, one, one, one), batch)


def test_steps_by_name():
    assert chosen_steps("none", flips=True) == ()
    assert chosen_steps("standard", flips=False) == (crop,)
    assert len(chosen_steps("strong", flips=True)) == 4
