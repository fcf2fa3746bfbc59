"""TernGrad (Wen et al. 2017): levels -1, 0, 1 of coordinates divided by their bucket's largest magnitude."""

from __future__ import annotations

import numpy as np

from lqray.quantization.methods import Method

METHOD = Method(norm="linf", initial_levels=lambda options: np.array([-1.0, 0.0, 1.0]))
