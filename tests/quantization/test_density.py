import numpy as np
import pytest
import torch

from lqray.quantization.codec import Coding
from lqray.quantization.density import EDGES, density_of


def coding(**changes) -> Coding:
    return Coding(**{"bits": 3, "bucket_size": 512, "norm": "l2"} | changes)


@pytest.mark.parametrize("n", [1, 511, 512, 513, 2**19 + 700])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_is_the_histogram_of_coordinates_over_norms(n, norm):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    found = density_of([x], coding(norm=norm))
    parts = [part.to(torch.float64) for part in x.split(512)]
    order = 2 if norm == "l2" else torch.inf
    r = np.concatenate([(part / part.norm(order).to(torch.float32).double()).clamp(-1, 1).numpy() for part in parts])
    wanted, _ = np.histogram(r, EDGES, density=True)
    # A norm may differ in its last bit, and move a coordinate that lies at an edge.
    assert np.abs((found.density - wanted) * np.diff(EDGES)).sum() <= 4 / n
    assert np.dot(found.density, np.diff(EDGES)) == pytest.approx(1.0)


def test_several_tensors_count_by_their_coordinates():
    ones, halves = torch.ones(30), torch.tensor([1.0, -0.5] * 5)
    found = density_of([ones, halves], coding(norm="linf"))
    mass = found.density * np.diff(EDGES)
    assert mass[-1] == pytest.approx(35 / 40)
    assert mass[np.searchsorted(EDGES, -0.5, side="right") - 1] == pytest.approx(5 / 40)


def test_zero_and_nonfinite_buckets_have_no_coordinates():
    assert density_of([], coding()) is None
    assert density_of([torch.zeros(600), torch.full((5,), torch.nan), torch.zeros(0)], coding()) is None
    mixed = torch.cat([torch.zeros(512), torch.tensor([0.0, 2.0])])
    mass = density_of([mixed], coding()).density * np.diff(EDGES)
    assert mass[np.searchsorted(EDGES, 0.0)] == mass[-1] == 0.5


def test_it_is_of_what_is_encoded():
    """Clipped, without an unquantized tail, rotated."""
    spiky = torch.zeros(1024)
    spiky[0] = 1.0
    assert density_of([spiky], coding(raw_tail=True, bucket_size=2000)) is None
    rotated = density_of([spiky], coding(rotate=True, bucket_size=1024))
    assert rotated.density[EDGES[:-1] > 0.1].sum() == 0
    clipped = density_of([spiky], coding(clip=2.5, norm="l2", bucket_size=1024))
    assert clipped.density[-1] > 0


def test_exact_zeros_are_counted_apart_and_in_their_bin():
    """Of eight coordinates three are zero, one of them negative zero; those of a bucket without a norm do not count."""
    x = torch.tensor([0.0, -0.0, 1e-9, -1e-9, 0.5, 0.0, 0.25, 1.0] + [0.0] * 8)
    found = density_of([x], coding(norm="linf", bucket_size=8))
    assert found.zeros == 3 / 8
    assert (found.density * np.diff(EDGES))[np.searchsorted(EDGES, 0.0)] == pytest.approx(4 / 8)
