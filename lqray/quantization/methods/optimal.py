"""The exact minimizer of the expected variance for the empirical distribution of the sampled coordinates (adaptive
stochastic quantization, cf. QUIVER, Ben Basat et al., NeurIPS 2024): no distributional assumption."""

from __future__ import annotations

from lqray.quantization.fitting import histogram_fit
from lqray.quantization.methods import Method, exponential

METHOD = Method(norm="rms", initial_levels=exponential, fit=histogram_fit())
