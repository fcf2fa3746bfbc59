"""Texts and files of tokens, and the data that they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lqray.experiment.schema import data_options
from lqray.training.data.text import Text
from lqray.training.dataset import load_dataset
from lqray.training.tokens import Windows


def options_of(root: object = None, **options):
    return data_options({"name": "text", "root": None if root is None else str(root), **options})


def load(root: object = None, **options) -> Text:
    return load_dataset(options_of(root, **options))


def ids(windows: Windows) -> np.ndarray:
    """All tokens of its streams."""
    return np.concatenate(windows.streams)


def contents(windows: Windows) -> bytes:
    return bytes(ids(windows).astype(np.uint8))


def is_mapped(tokens: np.ndarray | None) -> bool:
    return tokens is not None and (isinstance(tokens, np.memmap) or is_mapped(tokens.base))


def write(path: Path, content: str | bytes = "some words") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_tokens(path: Path, tokens, magic: int | None = None, version: int = 1, count: int | None = None) -> Path:
    """As nanoGPT does, or with the header of llm.c."""
    kind = "<u4" if magic == 20240801 else "<u2"
    header = np.zeros(256 if magic else 0, "<i4")
    if magic:
        header[:3] = magic, version, len(tokens) if count is None else count
    return write(path, header.tobytes() + np.asarray(tokens).astype(kind).tobytes())
