"""Levels and slopes of least variance for the histogram of the sampled coordinates: stochastic rounding whose noise the
decoder knows, and in part takes back."""

from __future__ import annotations

from lqray.quantization.fitting import histogram_fit
from lqray.quantization.methods import Method, uniform
from lqray.quantization.sloped import SlopedQuantizer


class Slopes(SlopedQuantizer):
    """See the module; before the first fit it is `dither`."""

    METHOD_OF_LEVELS = Method(norm="linf", initial_levels=uniform, fit=histogram_fit())


METHOD = Slopes
