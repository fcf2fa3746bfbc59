"""AMQ on coordinates divided by their bucket's largest magnitude."""

from __future__ import annotations

from lqray.quantization.fitting import mixture_fit
from lqray.quantization.methods import Method, exponential

METHOD = Method(norm="linf", initial_levels=exponential, fit=mixture_fit("amq"), multiplier=True)
