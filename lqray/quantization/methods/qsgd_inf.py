"""QSGDinf: uniform levels of coordinates divided by their bucket's largest magnitude."""

from __future__ import annotations

from lqray.quantization.methods import Method, uniform

METHOD = Method(norm="linf", initial_levels=uniform)
