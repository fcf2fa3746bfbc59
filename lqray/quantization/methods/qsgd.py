"""QSGD (Alistarh et al. 2017): uniform levels of coordinates divided by their bucket's l2 norm."""

from __future__ import annotations

from lqray.quantization.methods import Method, uniform

METHOD = Method(norm="l2", initial_levels=uniform)
