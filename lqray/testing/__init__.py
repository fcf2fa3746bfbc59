"""What holds of every part of a kind, to be asked of one's own: a line of a test file that pytest collects.

    from lqray.testing import compressor_suite, dataset_suite, model_suite

    TestSketch = compressor_suite("my_lab.sketch:METHOD", rank=2)
    TestNet = model_suite("my_lab.nets:build", shape=(1, 8, 8), classes=10, width=16)
    TestDigits = dataset_suite("my_lab.digits:load", file="digits.csv")

The keywords are the part's options. Nothing here needs pytest itself.
"""

from __future__ import annotations

from lqray.testing.compressors import compressor_suite
from lqray.testing.datasets import dataset_suite
from lqray.testing.models import model_suite

__all__ = ["compressor_suite", "dataset_suite", "model_suite"]
