"""The working tree as one zip file, for the machines of a cluster."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lqray.experiment.secrets import is_secret_file
from lqray.orchestration.code_version import digest_of
from lqray.orchestration.provenance import origin
from lqray.orchestration.remote.working_tree import PackageError, WorkingTree, check_names, working_tree
from lqray.orchestration.submitted import FILE, Submitted

LIMIT = 100 * 10**6
"""Bytes of the zip file; Ray's job server takes no more than 100 MiB."""
_LARGEST_TREE = 5
"""Times the limit: no tree that is larger is read, to see how small it becomes."""
_OUTSIDE = "submitted"
_SHOWN = 8
_PIECE = 2**20


@dataclass(frozen=True)
class Package:
    """A packed tree. names: of the files in it. size: bytes of the zip file. experiments: the experiment files' paths
    in it. submitted: what it says of where it comes from. largest: (bytes, name) of its largest files, unpacked."""

    path: Path
    tree: WorkingTree
    names: tuple[str, ...]
    size: int
    experiments: tuple[str, ...]
    submitted: Submitted
    largest: tuple[tuple[int, str], ...]

    @property
    def files(self) -> int:
        """How many are in it."""
        return len(self.names)


def pack(
    experiments: Sequence[Path],
    target: Path,
    directory: Path | None = None,
    limit: int = LIMIT,
    beside: Sequence[Mapping[str, Path]] = (),
) -> Package:
    """Write the working tree around `directory`, by default the current one, to the zip file `target`: see
    `working_tree` for what that is. The experiment files always come along, and what git knows of its lqray. beside: of
    each of them, the files in its folder that its trials' own parts are made of, by their names there; where the
    experiment's file is none of the tree, they come with it.

    Equal trees make equal bytes, which Ray does not upload again. A file that vanishes meanwhile is left out. Raises
    PackageError for a tree that cannot be sent, and, with the largest files, for one beyond `limit`; one far beyond is
    not even read.
    """
    try:
        return _packed(experiments, target, (directory or Path.cwd()).resolve(), limit, beside)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _packed(
    experiments: Sequence[Path], target: Path, place: Path, limit: int, beside: Sequence[Mapping[str, Path]]
) -> Package:
    tree = working_tree(place)
    chosen = {name: tree.root / name for name in tree.names}
    inside = []
    for number, file in enumerate(experiments, start=1):
        path = (place / file).resolve()
        if path.is_relative_to(tree.root):
            name = path.relative_to(tree.root).as_posix()
        else:
            folder = f"{_OUTSIDE}/{number}"
            name = f"{folder}/{path.name}"
            others = beside[number - 1] if beside else {}
            chosen |= {f"{folder}/{below}": one for below, one in others.items() if not is_secret_file(below)}
        chosen[name] = path
        inside.append(name)
    chosen.pop(FILE, None)  # of a job's folder that became a tree
    check_names(tree.root, chosen)
    sizes = _sizes(chosen)
    if sum(sizes.values()) > _LARGEST_TREE * limit:
        raise PackageError(_too_large(tree.root, sizes, limit, f"{sum(sizes.values()) / 1e6:.0f} MB of files"))
    told = replace(origin(tree.root / "lqray"), code=code_of(tree)) if tree.has_lqray else Submitted()
    with target.open("wb") as raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(chosen):
            added = _add(archive, name, chosen[name], lambda: raw.tell() <= limit)
            if not added and name in inside:
                raise PackageError(f"{chosen[name]}: the experiment's file has vanished")
            if raw.tell() > limit:
                packed = {one.filename: one.compress_size for one in archive.infolist()}
                raise PackageError(_too_large(tree.root, packed, limit, f"more than {limit / 1e6:g} MB compressed"))
        archive.writestr(_entry(FILE, executable=False), told.as_json())
        names = tuple(archive.namelist())
    return Package(target, tree, names, target.stat().st_size, tuple(inside), told, _largest(sizes))


def code_of(tree: WorkingTree) -> str:
    """Digest of the lqray that a tree holds, as `code_version` of the process that will run it; "" where it
    holds none."""
    return digest_of(tree.root / "lqray", [tree.root / name for name in tree.code]) if tree.has_lqray else ""


def _sizes(files: Mapping[str, Path]) -> dict[str, int]:
    """Bytes of each that is there."""
    found = {}
    for name, file in files.items():
        try:
            found[name] = file.stat().st_size
        except FileNotFoundError:
            continue
    return found


def _add(archive: zipfile.ZipFile, name: str, file: Path, room: Callable[[], bool]) -> bool:
    """Add a file, as long as there is room; False for one that has vanished."""
    try:
        source = file.open("rb")
    except FileNotFoundError:
        return False
    with source:
        entry = _entry(name, executable=bool(os.fstat(source.fileno()).st_mode & stat.S_IXUSR))
        with archive.open(entry, "w") as into:
            while room() and (piece := source.read(_PIECE)):
                into.write(piece)
    return True


def _entry(name: str, executable: bool) -> zipfile.ZipInfo:
    # A date of its own would change the bytes, and with them the name under which Ray keeps the package.
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _largest(sizes: Mapping[str, int]) -> tuple[tuple[int, str], ...]:
    return tuple(sorted(((size, name) for name, size in sizes.items()), reverse=True)[:_SHOWN])


def _too_large(root: Path, sizes: Mapping[str, int], limit: int, found: str) -> str:
    lines = "".join(f"\n  {size / 1e6:8.1f} MB  {name}" for size, name in _largest(sizes))
    return (
        f"the working tree {root} is too large to send: {found}. Its largest files so far:{lines}\nName what a sweep "
        f"does not need in .gitignore (data belongs on the machines: LQRAY_DATA); at most {limit / 1e6:g} MB, "
        "compressed, are sent"
    )
