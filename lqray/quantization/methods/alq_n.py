"""ALQ-N (Faghri et al. 2020): ALQ under one truncated normal, pooled over buckets whatever their norm."""

from __future__ import annotations

from lqray.quantization.fitting import normless_fit
from lqray.quantization.methods import Method, exponential

METHOD = Method(norm="rms", initial_levels=exponential, fit=normless_fit("alq"))
