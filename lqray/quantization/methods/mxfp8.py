"""MXFP8 (OCP MX 1.0): floats of 4 exponent and 3 mantissa bits, up to 448, in groups of 32 with a scale of a byte."""

from __future__ import annotations

from lqray.quantization.groups import Microscaling, float_numbers


class Mxfp8(Microscaling):
    """E4M3; 8.25 bits a coordinate."""

    numbers = float_numbers(4, 3, 448.0)


METHOD = Mxfp8
