"""Gradients travel as bfloat16, by torch DDP's own hook; a baseline."""

from __future__ import annotations

from lqray.quantization.sixteen_bits import SixteenBits

METHOD = SixteenBits
