"""AMQ (Faghri et al. 2020): exponential levels of the best multiplier under the norm-weighted mixture."""

from __future__ import annotations

from lqray.quantization.fitting import mixture_fit
from lqray.quantization.methods import Method, exponential

METHOD = Method(norm="rms", initial_levels=exponential, fit=mixture_fit("amq"), multiplier=True)
