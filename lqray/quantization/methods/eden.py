"""EDEN (Vargaftik et al. 2022): see `lqray.quantization.eden`."""

from __future__ import annotations

from lqray.quantization.eden import Eden

METHOD = Eden
