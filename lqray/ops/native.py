"""The native libraries, one of CPU kernels and one of CUDA kernels: found, loaded, or not, and why."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lqray.kernels.libraries import find
from lqray.ops import allocation, devices, eden, grids, reference, slopes

_OF_BUCKETS = (
    "bucket_norms",
    "bucket_statistics",
    "encode",
    "encode_fused",
    "encode_rotated",
    "decode",
    "decode_sum",
    "hadamard",
)
REFERENCES: dict[str, Callable[..., Any]] = {
    **{name: getattr(reference, name) for name in _OF_BUCKETS},
    **allocation.REFERENCES,
    **eden.REFERENCES,
}
"""Of operators that have kernels for the CPU and for CUDA, by name."""
OPERATORS = tuple(REFERENCES)
"""Their names."""
CODING = ("pack", "unpack", "rans_encode", "rans_decode")
"""Those that have kernels for the CPU alone: `lqray.ops.coding`."""
CPU_OPERATORS = (*CODING, *slopes.REFERENCES, *grids.REFERENCES)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CudaKernels:
    """path: of the loaded library, None where the reference serves every GPU. architectures: what it was compiled for,
    of nvcc's names ("sm_80", "compute_90"). reason: why it is not loaded."""

    path: Path | None
    architectures: tuple[str, ...]
    reason: str | None


@dataclass(frozen=True)
class Native:
    """path: of the loaded library of CPU kernels, None where the reference serves the CPU. instruction_set: that of its
    kernels. reason: why it is not loaded. cuda: the other library."""

    path: Path | None
    instruction_set: str | None
    reason: str | None
    cuda: CudaKernels


def load() -> Native:
    """Load the libraries that were built from the sources here (`lqray.kernels.libraries.find`), which register their
    kernels; says once for each what keeps it away. LQRAY_NATIVE=0 keeps them out; LQRAY_NATIVE_LIBRARY names a file
    that is loaded alone in their place."""
    if os.environ.get("LQRAY_NATIVE") == "0":
        return Native(None, None, "LQRAY_NATIVE=0", CudaKernels(None, (), "LQRAY_NATIVE=0"))
    if named := os.environ.get("LQRAY_NATIVE_LIBRARY"):
        return _cpu(Path(named), "", CudaKernels(None, (), "LQRAY_NATIVE_LIBRARY names the only library"))
    library, reason = _found("_native", "a C++ compiler is")
    return _cpu(library, reason, _cuda(*_found("_native_cuda", "nvcc and a torch for CUDA are")))


def _found(name: str, where: str) -> tuple[Path | None, str]:
    """A library; why there is none."""
    library, others = find(name)
    if others:
        return library, f"that of {others[0].parent} is of other sources; `lqray build-native` builds it of those here"
    return library, f"it was not built; `lqray build-native` builds it where {where}"


def _cpu(library: Path | None, reason: str, cuda: CudaKernels) -> Native:
    if library:
        try:
            return Native(library, _loaded(library, "lqray_cpu_instruction_set"), None, cuda)
        except (OSError, AttributeError) as error:
            reason = _does_not_load(library, error)
    _log.warning("lqray runs on its reference operators, which are slow: no native library; %s", reason)
    return Native(None, None, reason, cuda)


def _cuda(library: Path | None, reason: str) -> CudaKernels:
    if not library:
        return CudaKernels(None, (), reason)
    try:
        return CudaKernels(library, tuple(_loaded(library, "lqray_cuda_architectures").split()), None)
    except (OSError, AttributeError) as error:
        reason = _does_not_load(library, error)
    _log.warning("lqray has no CUDA kernels; operators on GPUs run on their reference, which is slow: %s", reason)
    return CudaKernels(None, (), reason)


def _loaded(library: Path, function: str) -> str:
    """The text that a function of a library returns; raises OSError where it does not load, AttributeError where it has
    no such function."""
    torch.ops.load_library(library)
    text = getattr(ctypes.CDLL(str(library)), function)
    text.restype = ctypes.c_char_p
    return str(text().decode())


def _does_not_load(library: Path, error: Exception) -> str:
    why = error.__cause__ or error  # torch's own error does not say it
    return f"{library.name} does not load beside torch {torch.__version__} ({why}); `lqray build-native` builds it anew"


def watch_devices(library: torch.library.Library, cuda: CudaKernels) -> None:
    """Where CUDA starts, and has devices that the loaded library has no kernels for: says so once, and leaves their
    tensors to the reference. library: in which the operators are defined."""

    def compare() -> None:
        if beyond := devices.lacking(cuda.architectures):
            has = f"the library has kernels for {' '.join(cuda.architectures)}"
            devices.say(beyond, f"{has}; TORCH_CUDA_ARCH_LIST chooses them when it is built")
            devices.leave_to_reference(library, REFERENCES, beyond)

    if cuda.path:
        devices.on_start(compare)


def backend(operator: str, device: str) -> str:
    """Who serves an operator for tensors of "cpu", "cuda" (the current device) or "cuda:1": "native" or "reference"."""
    place = torch.device(device)
    key = {"cpu": "CPU", "cuda": "CUDA"}[place.type]
    has = torch._C._dispatch_has_kernel_for_dispatch_key(f"lqray::{operator}", key)
    if has and key == "CUDA" and torch.cuda.is_available():
        torch.cuda.init()
        has = not devices.left_to_reference(torch.cuda.current_device() if place.index is None else place.index)
    return "native" if has else "reference"
