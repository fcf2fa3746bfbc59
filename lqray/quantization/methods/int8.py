"""8-bit integers -127 to 127 over the largest magnitude of a group."""

from __future__ import annotations

import torch

from lqray.quantization.groups import Groups


class Int8(Groups):
    """Groups of `bucket_size` with a float32 scale each."""

    numbers = torch.arange(-127.0, 128.0)


METHOD = Int8
