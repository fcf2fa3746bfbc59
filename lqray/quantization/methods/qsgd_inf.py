"""QSGDinf: uniform levels of coordinates divided by their bucket's largest magnitude."""

from __future__ import annotations

from lqray.quantization.levels import uniform_levels
from lqray.quantization.methods import Method

METHOD = Method(norm="linf", initial_levels=lambda options: uniform_levels(options.bits))
