"""Quantization of gradients: methods, levels, statistics, solvers, and the codec between tensors and payloads."""

from lqray.quantization.codec import Payload
from lqray.quantization.distribution import TruncatedNormalMixture
from lqray.quantization.fitting import Statistics
from lqray.quantization.histogram import Histogram
from lqray.quantization.quantizer import Quantizer
from lqray.quantization.solvers import solve_levels
from lqray.quantization.statistics import BucketStatistics

__all__ = [
    "BucketStatistics",
    "Histogram",
    "Payload",
    "Quantizer",
    "Statistics",
    "TruncatedNormalMixture",
    "solve_levels",
]
