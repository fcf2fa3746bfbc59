"""One module per method; its name is the method's name in YAML. Each defines METHOD: a `Method`, or None for a method
that sends no codes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lqray.quantization.levels import Levels
from lqray.quantization.statistics import BucketStatistics


@dataclass(frozen=True)
class Method:
    """What distinguishes a quantization method.

    norm: the norm of a bucket. initial_levels: options -> float64 levels (L,), L <= 2**bits. fit: statistics, current
    levels and options -> levels, no worse than the current ones; None for levels that never change.
    """

    norm: Literal["l2", "linf"]
    initial_levels: Callable[[Any], Levels]
    fit: Callable[[BucketStatistics, Levels, Any], Levels] | None = None


def load_method(name: str) -> Method | None:
    """The METHOD of `lqray.quantization.methods.<name>`."""
    method: Method | None = importlib.import_module(f"{__name__}.{name}").METHOD
    return method
