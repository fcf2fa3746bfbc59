"""NUQSGD (Ramezani-Kebrya et al. 2019): exponential levels of coordinates divided by their bucket's l2 norm."""

from __future__ import annotations

from lqray.quantization.methods import Method, exponential

METHOD = Method(norm="l2", initial_levels=exponential)
