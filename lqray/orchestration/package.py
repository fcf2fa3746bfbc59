"""The working tree as one zip file, for the machines of a cluster."""

from __future__ import annotations

import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lqray.experiment.secrets import is_secret_file

LIMIT = 100 * 10**6
"""Bytes of the zip file; Ray's job server takes no more than 100 MiB."""

_OUTSIDE = "submitted"
_SHOWN = 8


class PackageError(ValueError):
    """A working tree that cannot be sent."""


@dataclass(frozen=True)
class Package:
    """A packed tree. names: of the files in it. size: bytes of the zip file. experiments: the experiment files' paths
    in it. left_out: files that by their names hold secrets, and stay here."""

    path: Path
    tree: Path
    names: tuple[str, ...]
    size: int
    experiments: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def files(self) -> int:
        """How many are in it."""
        return len(self.names)


def pack(experiments: Sequence[Path], target: Path, directory: Path | None = None, limit: int = LIMIT) -> Package:
    """Write the working tree around `directory`, by default the current one, to the zip file `target`.

    In a git repository those are the files that git tracks or does not ignore; elsewhere all but what Ray leaves out,
    too (.git, .venv, __pycache__, what .gitignore and .rayignore name). Native libraries are of one machine and stay
    here, and so do files that by their names, or those that links lead to, hold secrets. The experiment files always
    come along. Equal trees make equal bytes, which Ray does not upload again. Raises PackageError for a link that leads
    out of the tree, and, with the largest files, beyond `limit`.
    """
    place = (directory or Path.cwd()).resolve()
    tree, names = _tree(place)
    chosen = {name: tree / name for name in names if not _native(name)}
    left_out = sorted(name for name, file in chosen.items() if _secret(tree, name, file))
    for name in left_out:
        del chosen[name]
    inside = []
    for number, file in enumerate(experiments, start=1):
        path = (place / file).resolve()
        name = path.relative_to(tree).as_posix() if path.is_relative_to(tree) else f"{_OUTSIDE}/{number}/{path.name}"
        chosen[name] = path
        inside.append(name)
    packed: list[tuple[int, str]] = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(chosen):
            packed.append((_add(archive, name, chosen[name]), name))
            if sum(size for size, _ in packed) > limit:
                target.unlink()
                raise PackageError(_too_large(tree, packed, limit))
    sent = tuple(name for _, name in packed)
    return Package(target, tree, sent, target.stat().st_size, tuple(inside), tuple(left_out))


def _secret(tree: Path, name: str, file: Path) -> bool:
    """Whether a file is to stay here. Raises PackageError where a link leads to one outside the tree, which nobody has
    thought of sending."""
    if is_secret_file(name):
        return True
    found = file.resolve()
    if not found.is_relative_to(tree):
        raise PackageError(
            f"{name} in the working tree {tree} is a link to {found}, outside of it; whoever has the cluster's token "
            "could read that. Allowed: links within the tree. Name it in .gitignore, or put a copy in its place"
        )
    return is_secret_file(found.relative_to(tree).as_posix())


def _add(archive: zipfile.ZipFile, name: str, file: Path) -> int:
    """Add a file; returns its compressed bytes."""
    # A date of its own would change the bytes, and with them the name under which Ray keeps the package.
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    executable = file.stat().st_mode & stat.S_IXUSR
    entry.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, file.read_bytes())
    return entry.compress_size


def _too_large(tree: Path, packed: list[tuple[int, str]], limit: int) -> str:
    largest = sorted(packed, reverse=True)[:_SHOWN]
    lines = "".join(f"\n  {size / 1e6:8.1f} MB  {name}" for size, name in largest)
    return (
        f"the working tree {tree} is too large to send: more than {limit / 1e6:g} MB compressed. Its largest files so "
        f"far:{lines}\nName what a sweep does not need in .gitignore (data belongs on the machines: LQRAY_DATA)"
    )


def _native(name: str) -> bool:
    return Path(name).name.startswith("_native") and name.endswith(".so")


def _tree(place: Path) -> tuple[Path, list[str]]:
    """(root, files below it) of the working tree around a folder."""
    top = _git(place, "rev-parse", "--show-toplevel")
    if top is None:
        return place, sorted(path.relative_to(place).as_posix() for path in _walk(place, _default_excludes()))
    root = Path(top.rstrip("\n")).resolve()
    listed = _git(root, "ls-files", "-co", "--exclude-standard", "-z") or ""
    # Files that were deleted, but not from the index, and submodules, which are folders, are listed as well.
    return root, [name for name in listed.split("\0") if name and (root / name).is_file()]


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _default_excludes() -> frozenset[str]:
    from ray._private.ray_constants import get_runtime_env_default_excludes

    return frozenset(get_runtime_env_default_excludes())


def _walk(folder: Path, excluded: frozenset[str], ignored: tuple[Callable[[Path], bool], ...] = ()) -> Iterator[Path]:
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    here = (*ignored, *get_excludes_from_ignore_files(folder, include_gitignore=True))
    for path in sorted(folder.iterdir()):
        if path.name in excluded or any(match(path) for match in here):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, excluded, here)
        elif path.is_file():
            yield path
