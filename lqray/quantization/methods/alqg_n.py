"""ALQG-N (Faghri et al. 2020): ALQ-N's objective by projected gradient descent."""

from __future__ import annotations

from lqray.quantization.fitting import normless_fit
from lqray.quantization.methods import Method, exponential

METHOD = Method(norm="rms", initial_levels=exponential, fit=normless_fit("alqg"))
