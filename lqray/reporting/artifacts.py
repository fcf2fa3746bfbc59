"""Files that runs have kept in MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from lqray.experiment.foreign import in_line, json_value
from lqray.reporting.exported import ExportedFolderError, artifact_in, export_folder
from lqray.store.client import reading_client
from lqray.store.errors import StoreError
from lqray.store.runs import Run

DENSITY = "density.json"
_MOST_BYTES = 16 << 20
_MOST_NUMBERS = 1 << 16
_LEAST, _MOST = 1e-30, 1e12
"""Of what is drawn, but for 0: no bin holds so little or so much."""


class ArtifactError(ValueError):
    """An artifact that cannot be used. The text names it and its run, and says why."""


def read_text(uri: str, record: Run, artifact: str) -> str | None:
    """Text of an artifact of a run; None where it has no such one. uri: absolute store. Raises ArtifactError,
    StoreError, StoreAwayError."""
    try:
        folder = export_folder(uri)
        content = artifact_in(folder, record.run_id, artifact, _MOST_BYTES) if folder else _sent(uri, record, artifact)
        if content is not None and len(content) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
        return None if content is None else content.decode()
    except ExportedFolderError as error:
        raise _unusable(record, artifact, error) from None
    except StoreError:
        raise
    except (OSError, ValueError) as error:
        raise _unusable(record, artifact, error) from None


def read_density(uri: str, record: Run) -> dict[str, Any] | None:
    """A run's `density.json`: method, density (n,), edges (n + 1,) ascending and levels as lists of numbers, and, of
    newer runs, zeros, the share of coordinates that are exactly 0; None where it has none. Raises ArtifactError,
    StoreError, StoreAwayError."""
    text = read_text(uri, record, DENSITY)
    if text is None:
        return None
    try:
        found = json_value(text)
        if not isinstance(found, dict) or not isinstance(found.get("method"), str):
            raise ValueError("method: allowed: a text")
        density, edges, _ = (_numbers(found, key) for key in ("density", "edges", "levels"))
        zeros = found.get("zeros", 0.0)
        if isinstance(zeros, bool) or not isinstance(zeros, int | float) or not 0 <= zeros <= 1:
            raise ValueError(f"zeros: found {in_line(repr(zeros)[:40])}; allowed: a share, 0 to 1")
        if min(density, default=0.0) < 0:
            raise ValueError("density: allowed: no negative numbers")
        if len(edges) != len(density) + 1 or any(low >= high for low, high in pairwise(edges)):
            raise ValueError(f"edges: found {len(edges)}; allowed: {len(density) + 1}, ascending")
    except ValueError as error:
        raise _unusable(record, DENSITY, error) from None
    return found


def _sent(uri: str, record: Run, artifact: str) -> bytes | None:
    from mlflow.exceptions import MlflowException

    client = reading_client(uri)
    with tempfile.TemporaryDirectory() as aside:
        try:
            there = next((one for one in client.list_artifacts(record.run_id) if one.path == artifact), None)
            if there is None:
                return None
            if (there.file_size or 0) > _MOST_BYTES:
                raise ValueError(f"it has {there.file_size} bytes; allowed: {_MOST_BYTES}")
            return Path(client.download_artifacts(record.run_id, artifact, aside)).read_bytes()
        except MlflowException:
            return None


def _numbers(found: Mapping[str, Any], key: str) -> list[float]:
    numbers = found.get(key)
    if not isinstance(numbers, list) or len(numbers) > _MOST_NUMBERS:
        raise ValueError(f"{key}: allowed: a list of at most {_MOST_NUMBERS} numbers")
    for one in numbers:
        usable = isinstance(one, int | float) and not isinstance(one, bool) and (not one or _LEAST < abs(one) < _MOST)
        if not usable:
            raise ValueError(f"{key}: found {in_line(repr(one)[:40])}; allowed: 0, or numbers from {_LEAST} to {_MOST}")
    return numbers


def _unusable(record: Run, artifact: str, error: Exception) -> ArtifactError:
    return ArtifactError(in_line(f"{artifact} of run {record.run_id} ({record.name}) cannot be used: {error}"))
