"""Quantization of gradients: methods, levels, statistics, solvers, and the codec between tensors and payloads."""

from lqray.quantization.compressor import Compressor
from lqray.quantization.distribution import TruncatedNormalMixture
from lqray.quantization.fitting import Statistics
from lqray.quantization.histogram import Histogram
from lqray.quantization.payload import Payload
from lqray.quantization.place import Place
from lqray.quantization.quantizer import Quantizer, compressor_of, create
from lqray.quantization.solvers import solve_levels
from lqray.quantization.statistics import BucketStatistics

__all__ = [
    "BucketStatistics",
    "Compressor",
    "Histogram",
    "Payload",
    "Place",
    "Quantizer",
    "Statistics",
    "TruncatedNormalMixture",
    "compressor_of",
    "create",
    "solve_levels",
]
