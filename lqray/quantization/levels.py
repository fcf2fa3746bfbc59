"""Families of levels: strictly increasing numbers from -1 to 1 that normalized coordinates are rounded to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.float64]


def uniform_levels(bits: int) -> Levels:
    """2**bits equally spaced levels, float64 (QSGD, Alistarh et al. 2017)."""
    return np.linspace(-1.0, 1.0, 2**bits)


def exponential_levels(bits: int, multiplier: float = 0.5) -> Levels:
    """+-multiplier**j for j = 0 .. 2**(bits - 1) - 1, float64: (2**bits,), no zero level (NUQSGD,
    Ramezani-Kebrya et al. 2019)."""
    positive = multiplier ** np.arange(2 ** (bits - 1) - 1, -1, -1, dtype=np.float64)
    return np.concatenate([-positive[::-1], positive])


def fill_levels(levels: Levels, count: int) -> Levels:
    """`count` levels: those given and the middles of the widest gaps. More levels never round worse."""
    while levels.size < count:
        widest = int(np.argmax(np.diff(levels)))
        levels = np.insert(levels, widest + 1, 0.5 * (levels[widest] + levels[widest + 1]))
    return levels


def as_float32(levels: Levels) -> NDArray[np.float32]:
    """Levels as they are used on the wire. Raises ValueError where float32 does not keep them strictly increasing."""
    rounded = levels.astype(np.float32)
    if not (rounded[0] == -1 and rounded[-1] == 1 and np.all(np.diff(rounded) > 0)):
        raise ValueError(f"levels must increase strictly from -1 to 1 in float32; found {levels.tolist()}")
    return rounded
