"""How often normalized coordinates fall where: what levels are to be seen against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lqray import ops
from lqray.quantization.codec import Coding, prepared

Array = NDArray[np.float64]

_SIDE = np.logspace(-6, 0, 121)
EDGES: Array = np.concatenate([-_SIDE[::-1], [0.0], _SIDE])
"""Of the bins, ascending from -1 to 1: 0, and 20 to a decade from 1e-6 on either side. A coordinate on an edge belongs
to the bin above it, 1 to the last."""

_CHUNK = 2**19


@dataclass(frozen=True)
class Density:
    """Of coordinates in [-1, 1]. edges: (M + 1,). density: (M,), per unit of coordinate; its integral is 1. zeros:
    share of the coordinates that are exactly 0, which are in the bin that begins there, too."""

    edges: Array
    density: Array
    zeros: float


def density_of(tensors: Sequence[Tensor], coding: Coding) -> Density | None:
    """Of the coordinates of gradients, each (n,), as they are encoded: clipped, rotated, divided by the norm of their
    bucket. None where no bucket has a positive, finite norm."""
    counts, zeros = np.zeros(EDGES.size - 1, dtype=np.int64), 0
    for tensor in tensors:
        found, exactly = _counts(tensor.reshape(-1), coding)
        counts += found
        zeros += exactly
    total = int(counts.sum())
    return Density(EDGES, counts / (total * np.diff(EDGES)), zeros / total) if total else None


def _counts(gradient: Tensor, coding: Coding) -> tuple[NDArray[np.int64], int]:
    """(of each bin, of coordinates that are exactly 0)."""
    coordinates, _ = prepared(gradient, coding, 0)
    norms = ops.bucket_norms(coordinates, coding.bucket_size, coding.norm)
    edges = torch.from_numpy(EDGES).to(gradient.device)
    counts = torch.zeros(EDGES.size - 1, dtype=torch.int64, device=gradient.device)
    zeros = torch.zeros((), dtype=torch.int64, device=gradient.device)
    step = max(1, _CHUNK // coding.bucket_size)  # buckets at a time: what is computed of them in float64 stays small
    for first in range(0, norms.numel(), step):
        part = coordinates[first * coding.bucket_size : (first + step) * coding.bucket_size].to(torch.float64)
        of_each = norms[first : first + step].to(torch.float64).repeat_interleave(coding.bucket_size)[: part.numel()]
        usable = of_each.isfinite() & (of_each > 0)
        zeros += (part[usable] == 0).sum()
        bins = torch.bucketize((part[usable] / of_each[usable]).clamp(-1.0, 1.0), edges, right=True) - 1
        counts += torch.bincount(bins.clamp(max=EDGES.size - 2), minlength=EDGES.size - 1)
    return np.asarray(counts.cpu().numpy()), int(zeros)
