"""DRIVE (Vargaftik et al. 2021): EDEN of one bit."""

from __future__ import annotations

from lqray.quantization.eden import Eden

METHOD = Eden
