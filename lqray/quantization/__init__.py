"""Quantization of gradients: methods, levels, statistics, solvers, and the codec between tensors and payloads."""

from lqray.quantization.codec import Payload
from lqray.quantization.distribution import TruncatedNormalMixture
from lqray.quantization.quantizer import Quantizer
from lqray.quantization.solvers import solve_levels
from lqray.quantization.statistics import BucketStatistics

__all__ = ["BucketStatistics", "Payload", "Quantizer", "TruncatedNormalMixture", "solve_levels"]
