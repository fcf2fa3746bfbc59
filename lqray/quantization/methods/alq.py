"""ALQ (Faghri et al. 2020, section 3): every inner level at the minimum of the expected variance under the
norm-weighted mixture of truncated normals fitted to the gradients' buckets."""

from __future__ import annotations

from lqray.experiment.options import AdaptiveLevelsOptions
from lqray.quantization.levels import Levels, exponential_levels
from lqray.quantization.methods import Method
from lqray.quantization.solvers import solve_levels
from lqray.quantization.statistics import BucketStatistics


def _fit(statistics: BucketStatistics, levels: Levels, options: AdaptiveLevelsOptions) -> Levels:
    mixture = statistics.mixture(options.components)
    return levels if mixture is None else solve_levels(mixture, options.bits, initial=levels)


METHOD = Method(
    norm="l2",
    initial_levels=lambda options: exponential_levels(options.bits, options.multiplier),
    fit=_fit,
)
