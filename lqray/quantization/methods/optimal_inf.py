"""`optimal` on coordinates divided by their bucket's largest magnitude, from uniform levels. Unlike under l2 norms, how
these are distributed differs from gradient to gradient, so that there is something to adapt to."""

from __future__ import annotations

from lqray.quantization.fitting import histogram_fit
from lqray.quantization.methods import Method, uniform

METHOD = Method(norm="linf", initial_levels=uniform, fit=histogram_fit())
