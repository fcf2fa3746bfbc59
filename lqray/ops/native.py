"""The native library: found, loaded, or not, and why."""

from __future__ import annotations

import ctypes
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

OPERATORS = ("bucket_norms", "bucket_statistics", "encode", "encode_fused", "decode", "decode_sum", "hadamard")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Native:
    """path: of the loaded library, None where the reference serves alone. instruction_set: that of its CPU kernels.
    reason: why it is not loaded."""

    path: Path | None
    instruction_set: str | None
    reason: str | None


def load() -> Native:
    """Load the library beside this package, which registers its kernels; says once where there is none.

    LQRAY_NATIVE=0 keeps it out; LQRAY_NATIVE_LIBRARY names another file.
    """
    if os.environ.get("LQRAY_NATIVE") == "0":
        return Native(None, None, "LQRAY_NATIVE=0")
    named = os.environ.get("LQRAY_NATIVE_LIBRARY")
    found = [Path(named)] if named else sorted(Path(__file__).parent.parent.glob("_native*.so"))
    if not found:
        reason = "it was not built: reinstall where a C++ compiler is (`pip install --no-build-isolation -e .`)"
    else:
        try:
            torch.ops.load_library(found[0])
            text = ctypes.CDLL(str(found[0])).lqray_cpu_instruction_set
            text.restype = ctypes.c_char_p
            return Native(found[0], text().decode(), None)
        except (OSError, AttributeError) as error:
            reason = (
                f"{found[0].name} does not load beside torch {torch.__version__} ({error}); reinstall to rebuild it"
            )
    _log.warning("lqray runs on its reference operators, which are slow: no native library; %s", reason)
    return Native(None, None, reason)


def backend(operator: str, device: str) -> str:
    """Who serves an operator for tensors of device "cpu" or "cuda": "native" or "reference"."""
    key = {"cpu": "CPU", "cuda": "CUDA"}[device]
    has = torch._C._dispatch_has_kernel_for_dispatch_key(f"lqray::{operator}", key)
    return "native" if has else "reference"
