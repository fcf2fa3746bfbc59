"""The contract of every compressor, asked of this one: `python -m pytest` in this folder."""

from lqray.testing import compressor_suite

TestRank1 = compressor_suite("low_rank:METHOD", rank=1)
TestRank4 = compressor_suite("low_rank:METHOD", rank=4)
