"""Results of a benchmark on disk: figures with the machine, versions and date they were measured with."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch

RESULTS = Path(__file__).parent / "results"


def median_seconds(call: Callable[[], object], repeats: int = 9) -> float:
    """Median wall-clock seconds of a call, after one that warms up."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def median_ratio(call: Callable[[], object], yardstick: Callable[[], object], repeats: int = 9) -> float:
    """Median of seconds(call) / seconds(yardstick), taken in turn, so that a busy machine slows both."""
    call(), yardstick()
    return statistics.median(
        median_seconds(call, repeats=1) / median_seconds(yardstick, repeats=1) for _ in range(repeats)
    )


def cpu() -> str:
    """The processor's name."""
    names = (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    return next(names, platform.processor())


def record(name: str, figures: Mapping[str, Any], targets: Mapping[str, bool]) -> None:
    """Write benchmarks/results/<name>.json and print it. targets: statement -> whether it was met."""
    print(write(RESULTS / f"{name}.json", figures, targets))


def write(path: Path, figures: Mapping[str, Any], targets: Mapping[str, bool]) -> str:
    """Write a file as `record` does, as a whole or not at all; its text."""
    document = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "scipy": scipy.__version__,
        },
        "targets": dict(targets),
        "figures": dict(figures),
    }
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(document, indent=1)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)
    return text


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
