"""The native libraries, one of CPU kernels and one of CUDA kernels: found, loaded, or not, and why."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch

from lqray.ops import devices, reference

OPERATORS = ("bucket_norms", "bucket_statistics", "encode", "encode_fused", "decode", "decode_sum", "hadamard")

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
    """Load the libraries beside this package, which register their kernels; says once for each what keeps it away.

    Without any, those of the lqray that is installed here serve, where their kernels' sources are the same: a submitted
    working tree brings none, since they would be of another machine. LQRAY_NATIVE=0 keeps them out;
    LQRAY_NATIVE_LIBRARY names a file that is loaded alone in their place.
    """
    if os.environ.get("LQRAY_NATIVE") == "0":
        return Native(None, None, "LQRAY_NATIVE=0", CudaKernels(None, (), "LQRAY_NATIVE=0"))
    if named := os.environ.get("LQRAY_NATIVE_LIBRARY"):
        return _cpu(Path(named), "", CudaKernels(None, (), "LQRAY_NATIVE_LIBRARY names the only library"))
    package = Path(__file__).parent.parent
    place = package
    reason = "it was not built: reinstall where a C++ compiler is (`pip install --no-build-isolation -e .`)"
    if not _libraries(package):
        installed = _installed_tree()
        if installed and _same_sources(installed, package.parent) and _libraries(installed / "lqray"):
            place = installed / "lqray"
        elif installed and installed != package.parent:
            reason = f"{package} has none, and that of {installed} is of other sources, or not built either"
    found = _libraries(place)
    return _cpu(found.get("_native"), reason, _cuda(found.get("_native_cuda")))


def _libraries(package: Path) -> dict[str, Path]:
    """By name: _native, _native_cuda."""
    return {file.name.partition(".")[0]: file for file in sorted(package.glob("_native*.so"))}


def _cpu(library: Path | None, reason: str, cuda: CudaKernels) -> Native:
    if library:
        try:
            return Native(library, _loaded(library, "lqray_cpu_instruction_set"), None, cuda)
        except (OSError, AttributeError) as error:
            reason = _does_not_load(library, error)
    _log.warning("lqray runs on its reference operators, which are slow: no native library; %s", reason)
    return Native(None, None, reason, cuda)


def _cuda(library: Path | None) -> CudaKernels:
    if not library:
        return CudaKernels(None, (), "CUDA kernels were not built: reinstall where nvcc and a torch for CUDA are")
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
    return f"{library.name} does not load beside torch {torch.__version__} ({why}); reinstall to rebuild it"


def watch_devices(library: torch.library.Library, cuda: CudaKernels) -> None:
    """Where CUDA starts, and has devices that the loaded library has no kernels for: says so once, and leaves their
    tensors to the reference. library: in which the operators are defined."""

    def compare() -> None:
        if beyond := devices.lacking(cuda.architectures):
            has = f"the library has kernels for {' '.join(cuda.architectures)}"
            devices.say(beyond, f"{has}; TORCH_CUDA_ARCH_LIST chooses them when it is built")
            devices.leave_to_reference(library, {name: getattr(reference, name) for name in OPERATORS}, beyond)

    if cuda.path:
        devices.on_start(compare)


def _installed_tree() -> Path | None:
    """Source tree of the lqray that is installed in this environment, where it was installed from one (`pip -e`)."""
    try:
        origin = importlib.metadata.distribution("lqray").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    url = urlsplit(json.loads(origin)["url"]) if origin else None
    return Path(unquote(url.path)) if url and url.scheme == "file" else None


def _same_sources(one: Path, other: Path) -> bool:
    """Whether the kernels of two source trees, and how they are built, are equal byte for byte."""
    files = [{file.name: file for file in (*tree.glob("csrc/*"), tree / "setup.py")} for tree in (one, other)]
    return (
        len(files[0]) > 1
        and files[0].keys() == files[1].keys()
        and all(file.is_file() and files[1][name].is_file() for name, file in files[0].items())
        and all(file.read_bytes() == files[1][name].read_bytes() for name, file in files[0].items())
    )


def backend(operator: str, device: str) -> str:
    """Who serves an operator for tensors of "cpu", "cuda" (the current device) or "cuda:1": "native" or "reference"."""
    place = torch.device(device)
    key = {"cpu": "CPU", "cuda": "CUDA"}[place.type]
    has = torch._C._dispatch_has_kernel_for_dispatch_key(f"lqray::{operator}", key)
    if has and key == "CUDA" and torch.cuda.is_available():
        torch.cuda.init()
        has = not devices.left_to_reference(torch.cuda.current_device() if place.index is None else place.index)
    return "native" if has else "reference"
