"""ALQG (Faghri et al. 2020): ALQ's objective by projected gradient descent."""

from __future__ import annotations

from lqray.quantization.fitting import mixture_fit
from lqray.quantization.methods import Method, exponential

METHOD = Method(norm="rms", initial_levels=exponential, fit=mixture_fit("alqg"))
