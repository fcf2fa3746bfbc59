"""The native library: found, loaded, or not, and why."""

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

    Without one, the library of the lqray that is installed here serves, where its kernels' sources are the same: a
    submitted working tree brings none, since it would be of another machine. LQRAY_NATIVE=0 keeps it out;
    LQRAY_NATIVE_LIBRARY names another file.
    """
    if os.environ.get("LQRAY_NATIVE") == "0":
        return Native(None, None, "LQRAY_NATIVE=0")
    named = os.environ.get("LQRAY_NATIVE_LIBRARY")
    package = Path(__file__).parent.parent
    found = [Path(named)] if named else _libraries(package)
    installed = None
    if not found and (installed := _installed_tree()) and _same_sources(installed, package.parent):
        found = _libraries(installed / "lqray")
    if not found:
        reason = "it was not built: reinstall where a C++ compiler is (`pip install --no-build-isolation -e .`)"
        if installed and installed != package.parent:
            reason = f"{package} has none, and that of {installed} is of other sources, or not built either"
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


def _libraries(package: Path) -> list[Path]:
    return sorted(package.glob("_native*.so"))


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
    """Who serves an operator for tensors of device "cpu" or "cuda": "native" or "reference"."""
    key = {"cpu": "CPU", "cuda": "CUDA"}[device]
    has = torch._C._dispatch_has_kernel_for_dispatch_key(f"lqray::{operator}", key)
    return "native" if has else "reference"
