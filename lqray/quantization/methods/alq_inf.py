"""ALQ on coordinates divided by their bucket's largest magnitude, from uniform levels."""

from __future__ import annotations

from lqray.quantization.fitting import mixture_fit
from lqray.quantization.methods import Method, uniform

METHOD = Method(norm="linf", initial_levels=uniform, fit=mixture_fit("alq"))
