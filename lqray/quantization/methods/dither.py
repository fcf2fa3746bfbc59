"""Subtractive dither (Schuchman 1964; Roberts 1962): uniform levels whose slopes are the gap between them, so that the
error is uniform in half a gap on either side, whatever the signal."""

from __future__ import annotations

from lqray.quantization.methods import Method, uniform
from lqray.quantization.sloped import SlopedQuantizer


class Dither(SlopedQuantizer):
    """See the module."""

    METHOD_OF_LEVELS = Method(norm="linf", initial_levels=uniform)


METHOD = Dither
