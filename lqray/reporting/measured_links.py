"""Seconds that were measured on links of a known rate, from a file of JSON: points beside modelled lines."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lqray.experiment.foreign import in_line, json_value
from lqray.store.runs import Run

_MOST_BYTES = 16 << 20
_NAME = re.compile(r"(?P<method>[a-z0-9_]+?)(?:_(?P<bits>\d+(?:\.\d+)?)_bits?)?(?:_every_(?P<every>\d+))?")
_NONE = ("null", "None")
_HOSTS = 2


class MeasuredFileError(ValueError):
    """A file of measurements that cannot be read; the text says what was found, and what is allowed."""


@dataclass(frozen=True)
class MeasuredPoint:
    """Of one run. method: as runs record it. bits, every: None where it has none. bandwidth: of each link, bits a
    second each way. target: that seconds_to_target are to; None for any. measured: not extrapolated
    from some of its steps."""

    method: str
    bits: float | None
    every: int | None
    bandwidth: float
    workers: int
    seconds_per_step: float | None
    seconds_to_target: float | None
    target: float | None
    measured: bool

    def is_of(self, run: Run) -> bool:
        """Whether a run has this method, these bits and this `exchange.every`."""
        every = run.params.get("exchange.every", "null")
        return (
            run.method == self.method
            and (self.bits is None or _number(run.params.get("quantizer.bits")) == self.bits)
            and (None if every in _NONE else _number(every)) == self.every
        )

    def seconds(self, target: float | None) -> float | None:
        """To the target, or without one of a step; None where it is not known, or of another target."""
        if target is None:
            return self.seconds_per_step
        return self.seconds_to_target if self.target in (None, target) else None


def read_measured(place: str) -> tuple[MeasuredPoint, ...]:
    """place: a file, and after a colon the workload of which rows are read, where it has several.

    A list of rows, or {"rows": [...]}, or what `benchmarks/time_to_target.py` writes. A row: method, such as `eden`, or
    with bits and `exchange.every` as in `eden_1_bit_every_8`; or bits and every by themselves; bandwidth (bits a
    second) or link_megabits (0: no limit, left out); workers (2); seconds_per_step and seconds_to_target (null where
    there are none), target; measured (true). Raises MeasuredFileError, OSError.
    """
    named, _, wanted = place.rpartition(":")
    file, wanted = (Path(place), "") if Path(place).exists() or not named else (Path(named), wanted)
    if not file.is_file():
        raise MeasuredFileError(f"found no file {in_line(str(file))}; allowed: one of JSON")
    if file.stat().st_size > _MOST_BYTES:
        raise MeasuredFileError(f"{file}: found more than {_MOST_BYTES >> 20} MiB; allowed: fewer")
    try:
        document = json_value(file.read_text())
    except ValueError as error:
        raise MeasuredFileError(f"{file}: found no JSON: {in_line(str(error))}") from None
    hosts: Any = None
    if isinstance(document, dict) and isinstance(document.get("figures"), dict):
        document = document["figures"]
    if isinstance(document, dict):
        hosts, document = document.get("hosts"), document.get("rows")
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise MeasuredFileError(f'{file}: allowed: a list of rows, or {{"rows": [...]}}')
    workloads = sorted({str(row["workload"]) for row in document if "workload" in row})
    if (wanted and wanted not in workloads) or (len(workloads) > 1 and not wanted):
        found = in_line(", ".join(workloads) or "none")
        raise MeasuredFileError(
            f"{file}: found rows of workloads {found}; allowed: one, as {file}:{in_line(wanted or workloads[0])}"
        )
    rows = [row for row in document if row.get("link_megabits") != 0 and wanted in ("", row.get("workload"))]
    try:
        return tuple(_point(row, hosts or _HOSTS) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise MeasuredFileError(f"{file}: found a row that is none: {in_line(str(error))}; {_ALLOWED}") from None


_ALLOWED = "allowed: method, bandwidth or link_megabits above 0, workers of 2 or more, seconds above 0 or null"


def matched(points: Sequence[MeasuredPoint], groups: Sequence[Sequence[Run]]) -> list[int | None]:
    """Of each point the group that all of whose runs it is of; None where there are none, or several."""
    found = []
    for point in points:
        fits = [at for at, runs in enumerate(groups) if runs and all(point.is_of(one) for one in runs)]
        found.append(fits[0] if len(fits) == 1 else None)
    return found


def _point(row: Mapping[str, Any], hosts: int) -> MeasuredPoint:
    name = _NAME.fullmatch(row["method"])
    if name is None:
        raise ValueError(f"method {row['method']!r}")
    bits, every = row.get("bits", name["bits"]), row.get("every", name["every"])
    bandwidth = float(row["bandwidth"]) if "bandwidth" in row else 1e6 * float(row["link_megabits"])
    workers, target = int(row.get("workers", hosts)), row.get("target")
    if not 0 < bandwidth < math.inf or workers < 2:
        raise ValueError(f"bandwidth {bandwidth:g}, workers {workers}")
    return MeasuredPoint(
        name["method"],
        None if bits is None else float(bits),
        None if every is None else int(every),
        bandwidth,
        workers,
        _seconds(row.get("seconds_per_step")),
        _seconds(row.get("seconds_to_target")),
        None if target is None else float(target),
        row.get("measured", True) is True,
    )


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if not 0 < float(value) < math.inf:
        raise ValueError(f"seconds {value}")
    return float(value)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
