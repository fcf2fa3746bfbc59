"""What the levels that a method starts with say of its options: whether they differ in float32, and which methods error
feedback can be used with.

What quantizing lost is added to the next gradient and quantized again. That stays bounded where quantizing is a
contraction: where it loses less than there was. Two things are known from the levels alone:

* linf norms: a coordinate's error is below the widest gap between levels, times the largest magnitude of its bucket.
  Where that gap is below 1, the largest magnitude of what is lost contracts.
* l2 norms: with the levels beside zero at -e and e, a bucket of d coordinates loses at least d e^2 - 1 times its
  energy, whatever is in it: near zero a coordinate has the variance e^2 - r^2, and the r^2 of a bucket add up to 1.
  From 1 on nothing contracts.

Levels that adapt are fitted before anything is fed back, and what they lose is measured while training.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache

from lqray.experiment.options.budget import budget_text, one_number, whole_number
from lqray.experiment.options.quantizer import (
    AdaptiveLevelsOptions,
    BucketOptions,
    CompressorOptions,
    ExponentialLevelsOptions,
    FixedLevelsOptions,
    QuantizerOptions,
    TernaryOptions,
    by_bits,
)

REMEDY = (
    "error_feedback: scaled (decoded values times 1 / (1 + omega), which contracts; not with grids in allocated), "
    "error_feedback: false, more bits, or smaller buckets"
)


def _uniform(bits: int, _: float) -> list[float]:
    return [2 * code / (2**bits - 1) - 1 for code in range(2**bits)]


def _exponential(bits: int, multiplier: float) -> list[float]:
    positive = [multiplier**power for power in reversed(range(2 ** (bits - 1)))]
    return [-level for level in reversed(positive)] + positive


# Of the methods that lqray has. A test holds the table to the methods themselves; one of a user's own is looked at when
# its exchange is made.
_NORMS_AND_LEVELS: dict[str, tuple[str, Callable[[int, float], list[float]]]] = {
    "qsgd": ("l2", _uniform),
    "qsgd_inf": ("linf", _uniform),
    "nuqsgd": ("l2", _exponential),
    "terngrad": ("linf", lambda bits, _: [-1.0, 0.0, 1.0]),
    "alq": ("rms", _exponential),
    "alq_inf": ("linf", _uniform),
    "alq_n": ("rms", _exponential),
    "alqg": ("rms", _exponential),
    "alqg_n": ("rms", _exponential),
    "amq": ("rms", _exponential),
    "amq_inf": ("linf", _exponential),
    "amq_n": ("rms", _exponential),
    "optimal": ("rms", _exponential),
    "optimal_inf": ("linf", _uniform),
}


def collision_problem(options: QuantizerOptions) -> tuple[str, str] | None:
    """(found, allowed) where the exponential levels +-multiplier**j that a method starts with are not all different in
    float32, in which they travel; None where they are, or the method has others."""
    if not isinstance(options, ExponentialLevelsOptions):
        return None
    if _NORMS_AND_LEVELS.get(options.method, ("", _uniform))[1] is not _exponential:
        return None
    each = by_bits(options).values()
    return next((found for one in each if (found := _collision(whole_number(one.bits), one.multiplier))), None)


@lru_cache(maxsize=1024)
def _collision(bits: int, multiplier: float) -> tuple[str, str] | None:
    if _differ(_exponential(bits, multiplier)):
        return None
    most = next((fewer for fewer in range(bits - 1, 0, -1) if _differ(_exponential(fewer, multiplier))), 0)
    smallest = f"{multiplier!r} with {bits} bits, whose levels reach down to {multiplier!r}**{2 ** (bits - 1) - 1}"
    return (
        f"{smallest}: in float32 not all of them differ",
        f"quantizer.bits of at most {most} with this multiplier, or a multiplier such as 0.5",
    )


def _differ(levels: Sequence[float]) -> bool:
    """As `lqray.quantization.levels.as_float32` has it."""
    return all(one < after for one, after in itertools.pairwise(array("f", levels)))


def adapts(options: QuantizerOptions) -> bool:
    """Whether levels are ever fitted, and can move: one bit has none but -1 and 1."""
    return (
        isinstance(options, AdaptiveLevelsOptions)
        and one_number(options.bits) > 1
        and bool(options.update_at or options.update_every)
    )


def widest_gap(levels: Sequence[float]) -> float:
    """Between neighbouring levels."""
    return max(after - before for before, after in itertools.pairwise(levels))


def why_no_contraction(options: BucketOptions, norm: str, levels: Sequence[float]) -> str | None:
    """The reason why a method with these levels, ascending from -1 to 1, can never be fed back as it is; None where it
    may well be. norm: of its buckets, l2, rms or linf."""
    if adapts(options) or options.bucket_size == 1:
        return None
    if norm == "linf":
        gap = widest_gap(levels)
        why = f"an error may be {gap:.3g} times the largest magnitude of its bucket"
        return f"{why}; allowed: below 1" if gap >= 1 else None
    below, above = max(level for level in levels if level <= 0), min(level for level in levels if level >= 0)
    lost = -below * above * options.bucket_size - 1
    why = f"at least {lost:.3g} times the energy of what it quantizes is lost at every step"
    return f"{why}; allowed: below 1" if lost >= 1 else None


def contraction_problem(options: QuantizerOptions) -> str | None:
    """As `why_no_contraction`, by the options alone: None for methods of which they do not say it. Of bits by parameter
    it is the first number of which they do."""
    return next((why for one in by_bits(options).values() if (why := _contraction_problem(one))), None)


def _contraction_problem(options: QuantizerOptions) -> str | None:
    if isinstance(options, CompressorOptions) and (why := options.why_no_contraction()):
        return why
    if options.method not in _NORMS_AND_LEVELS or not isinstance(options, FixedLevelsOptions | TernaryOptions):
        return None
    norm, levels = _NORMS_AND_LEVELS[options.method]
    return why_no_contraction(options, norm, levels(whole_number(options.bits), getattr(options, "multiplier", 0.5)))


def described(options: object, name: str = "") -> str:
    """The method, as messages name it; `name` where its options are a user's own."""
    if not isinstance(options, QuantizerOptions):
        return name
    bits = f" at {budget_text(options.bits)} bits" if isinstance(options, FixedLevelsOptions) else ""
    buckets = f" with buckets of {options.bucket_size}" if isinstance(options, BucketOptions) else ""
    return f"{options.method}{bits}{buckets}"
