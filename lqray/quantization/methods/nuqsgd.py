"""NUQSGD (Ramezani-Kebrya et al. 2019): exponential levels of coordinates divided by their bucket's l2 norm."""

from __future__ import annotations

from lqray.quantization.levels import exponential_levels
from lqray.quantization.methods import Method

METHOD = Method(norm="l2", initial_levels=lambda options: exponential_levels(options.bits, options.multiplier))
