"""What a method of quantization is, and how one is found by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lqray.quantization.compressor import Compressor
from lqray.quantization.fitting import Fit
from lqray.quantization.levels import Levels, exponential_levels, uniform_levels


@dataclass(frozen=True)
class Method:
    """What distinguishes a quantization method.

    norm: the norm of a bucket, as `lqray.ops.bucket_norms` has it. initial_levels: options -> float64 levels (L,), L <=
    2**bits. fit: what is observed of gradients and how levels follow from it; None for levels that never change.
    multiplier: the levels are always exponential, so that one number says them all.
    """

    norm: Literal["l2", "linf", "rms"]
    initial_levels: Callable[[Any], Levels]
    fit: Fit | None = None
    multiplier: bool = False


def load_method(name: str) -> Method | Callable[[Any], Compressor] | None:
    """The METHOD of `lqray.quantization.methods.<name>`: of levels, or what makes a compressor of options."""
    method: Method | Callable[[Any], Compressor] | None = importlib.import_module(
        f"lqray.quantization.methods.{name}"
    ).METHOD
    return method


def uniform(options: Any) -> Levels:
    """Equally spaced levels, as `Method.initial_levels`."""
    return uniform_levels(options.bits)


def exponential(options: Any) -> Levels:
    """Exponential levels of the options' multiplier, as `Method.initial_levels`."""
    return exponential_levels(options.bits, options.multiplier)
