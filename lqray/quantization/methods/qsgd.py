"""QSGD (Alistarh et al. 2017): uniform levels of coordinates divided by their bucket's l2 norm."""

from __future__ import annotations

from lqray.quantization.levels import uniform_levels
from lqray.quantization.methods import Method

METHOD = Method(norm="l2", initial_levels=lambda options: uniform_levels(options.bits))
