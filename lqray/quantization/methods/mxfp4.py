"""MXFP4 (OCP MX 1.0): floats of 2 exponent bits and 1 mantissa bit, up to 6, in groups of 32 with a scale of a byte."""

from __future__ import annotations

from lqray.quantization.groups import Microscaling, float_numbers


class Mxfp4(Microscaling):
    """E2M1; 4.25 bits a coordinate."""

    numbers = float_numbers(2, 1, 6.0)


METHOD = Mxfp4
