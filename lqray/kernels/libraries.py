"""Where native libraries lie, and what they were built from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import mmap
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lqray.carried import PACKAGE, carried

NAMES = ("_native", "_native_cuda")
SOURCES = ("*.h", "*.cpp", "*.cu", "*.cuh")
"""Files of csrc/ that are compiled."""
_MARK = "lqray sources "
"""Stands before their digest in every library: csrc/bind.h."""


@cache
def digest() -> str | None:
    """32 hexadecimal digits of the SHA-256 of the kernels' sources and of how they are compiled; None where they are
    not here."""
    folder = carried("csrc")
    if folder is None:
        return None
    found = hashlib.sha256()
    sources = sorted(file for pattern in SOURCES for file in folder.glob(pattern))
    for file in (*sources, Path(__file__).with_name("build.py")):
        content = file.read_bytes()
        found.update(f"{file.name}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()[:32]


def find(name: str) -> tuple[Path | None, list[Path]]:
    """(the library of such a name that was built from the sources here, those that were built from others).

    It lies beside the package, in the user's cache, or with the lqray that is installed here: a submitted working tree
    brings none, since it would be of another machine. Where the package came without sources, any will do.
    """
    others: list[Path] = []
    for place in _places():
        for file in sorted(place.glob(f"{name}.*so")):
            if built_from(file, digest()):
                return file, others
            others.append(file)
    return None, others


def built_from(library: Path, sources: str | None) -> bool:
    """Whether a library was built from the sources of this digest, as it says itself; it is not loaded."""
    if sources is None:
        return True
    try:
        with library.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(f"{_MARK}{sources}".encode()) >= 0
    except (OSError, ValueError):  # gone, or empty
        return False


def destination() -> Path:
    """Where libraries that are built now belong: beside the package, or else in the user's cache."""
    return PACKAGE if os.access(PACKAGE, os.W_OK) else cache_folder()


def cache_folder() -> Path:
    """Of the user's, for libraries of the sources here and of machines like this one; it need not exist."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(chosen if Path(chosen).is_absolute() else "~/.cache").expanduser()
    return base / "lqray" / f"{digest() or 'unknown'}-{platform.machine()}"


def _places() -> Iterator[Path]:
    yield PACKAGE
    cached = _cached()
    if cached:
        yield cached
    for place in _installed():
        if place != PACKAGE:
            yield place


def _cached() -> Path | None:
    """The cache, where it is this user's own: what lies there is executed."""
    try:
        folder = cache_folder()
        return folder if folder.stat().st_uid == os.getuid() else None
    except (OSError, RuntimeError):  # there is none, or no home
        return None


def _installed() -> list[Path]:
    """Package folders of the lqray that is installed here: of its source tree (`pip install -e`), or its own."""
    try:
        found = importlib.metadata.distribution("lqray")
    except importlib.metadata.PackageNotFoundError:
        return []
    origin = found.read_text("direct_url.json")
    url = urlsplit(json.loads(origin)["url"]) if origin else None
    tree = [Path(unquote(url.path)) / "lqray"] if url and url.scheme == "file" else []
    return [*tree, Path(str(found.locate_file("lqray")))]
