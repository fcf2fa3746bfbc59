"""What this machine is made of, in words, read once a process and without torch."""

from __future__ import annotations

import os
import platform
from collections import Counter
from functools import cache
from pathlib import Path

_CPUS = Path("/proc/cpuinfo")
_GPUS = Path("/proc/driver/nvidia/gpus")
_MOST = 200


@cache
def machine() -> str:
    """CPU model, cores that this process may use, and GPUs of NVIDIA's driver where it shows some: `AMD EPYC 7763, 2
    cores, 4 x NVIDIA H100 80GB HBM3`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = Counter(name for file in _files(_GPUS) for name in _values(file, "Model"))
    named = [name if count == 1 else f"{count} x {name}" for name, count in sorted(gpus.items())]
    return ", ".join([_cpu(), f"{cores} {'core' if cores == 1 else 'cores'}", *named])


def _cpu() -> str:
    return next(iter(_values(_CPUS, "model name")), platform.processor() or platform.machine())


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*/information"))
    except OSError:
        return []


def _values(file: Path, key: str) -> list[str]:
    """Of the lines `KEY: VALUE` of a file of the kernel; none where it cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    split = [line.partition(":") for line in lines]
    return [value.strip()[:_MOST] for name, _, value in split if name.strip() == key and value.strip()]
