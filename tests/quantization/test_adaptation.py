"""What levels can learn of gradients: under l2 norms the bucket size alone, under linf norms their distribution."""

import numpy as np
import pytest
import torch

from lqray.quantization import Quantizer

D = 1024
L2 = ("alq", "alq_n", "alqg", "alqg_n", "amq", "amq_n")
LINF = ("alq_inf", "amq_inf", "optimal_inf")


def datasets(mirrored: bool) -> dict[str, torch.Tensor]:
    """Sixteen buckets each, distributed in unlike ways. mirrored: every bucket holds the negative of each
    of its coordinates, too, so that its mean is 0."""
    random = torch.Generator().manual_seed(1)
    count = 16 * D // 2 if mirrored else 16 * D
    normal = torch.randn(count, generator=random)
    spread = torch.logspace(-4, 4, 16).repeat_interleave(count // 16)
    few = torch.where(torch.rand(count, generator=random) < 0.1, normal, torch.zeros(count))
    found = {
        "normal": normal,
        "uniform": torch.rand(count, generator=random) - 0.5,
        "heavy tails": normal.pow(3),
        "few that are not 0": few,
        "buckets of unlike scale": normal * spread,
    }
    if mirrored:
        found = {name: torch.cat([x.view(16, -1), -x.view(16, -1)], dim=1).reshape(-1) for name, x in found.items()}
    return found


def fitted(method: str, x: torch.Tensor) -> np.ndarray:
    quantizer = Quantizer.create(method, bits=3, bucket_size=D)
    quantizer.observe(x)
    assert quantizer.update_levels()
    return quantizer.exact_levels


@pytest.mark.parametrize("method", L2)
def test_l2_levels_are_the_same_for_all_data_whose_buckets_have_mean_0(method):
    """m^2 + s^2 = 1/d in each: exactly the same, but for float32 norms."""
    first, *others = (fitted(method, x) for x in datasets(mirrored=True).values())
    for levels in others:
        np.testing.assert_allclose(levels, first, rtol=1e-5)


@pytest.mark.parametrize("method", L2)
def test_l2_levels_move_with_a_buckets_mean_alone(method):
    """Of data as they come: a level moves by less than a fifth of the normal's deviation, 1/sqrt(d)."""
    first, *others = (fitted(method, x) for x in datasets(mirrored=False).values())
    for levels in others:
        np.testing.assert_allclose(levels, first, atol=0.2 * D**-0.5)


@pytest.mark.parametrize("method", LINF)
def test_linf_levels_differ(method):
    normal, uniform, tails = (fitted(method, x) for x in list(datasets(mirrored=True).values())[:3])
    assert np.abs(normal - uniform).max() > 0.05
    assert tails[5] < 0.7 * normal[5] < 0.7 * uniform[5]


def test_the_histogram_under_l2_norms_sees_what_a_normal_does_not():
    levels = [fitted("optimal", x) for x in datasets(mirrored=True).values()]
    assert np.abs(levels[2] - levels[0]).max() > 2 * D**-0.5
