"""ALQ (Faghri et al. 2020): every inner level at the minimum of the expected variance under the norm-weighted mixture
of truncated normals fitted to the gradients' buckets."""

from __future__ import annotations

from lqray.quantization.fitting import mixture_fit
from lqray.quantization.methods import Method, exponential

METHOD = Method(norm="rms", initial_levels=exponential, fit=mixture_fit("alq"))
