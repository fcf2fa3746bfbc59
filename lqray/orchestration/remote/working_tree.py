"""What of the folders around here goes to a cluster: the files, and where among them lqray lies."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import lqray
from lqray.experiment.secrets import is_secret_file

# Its package, by two files that it has always had.
_OF_LQRAY = ("lqray/__init__.py", "lqray/orchestration/__init__.py")
_TELLS = "lqray/orchestration/submitted.py"
_RESULT_FOLDERS = frozenset({"lqray-storage", "lqray-artifacts", "mlruns", "mlartifacts"})
_RESULT_FILE = re.compile(r"lqray\.db(-wal|-shm|-journal)?")
_CHECKPOINT = re.compile(r"step-\d+\.pt")
_NO_REPOSITORY = "not a git repository (or any"  # without the rest, it is one that is damaged


class PackageError(ValueError):
    """A working tree that cannot be sent."""


@dataclass(frozen=True)
class WorkingTree:
    """root: the folder whose files are sent, and in which a job runs. around: of the repository, or the folder, that
    it was found in. names: of the files, relative to `root`, with / between folders, sorted. has_lqray: whether
    lqray's code is among them, at `root`/lqray. secrets, results, absent: what stays here, because by its name it
    holds secrets, because lqray made it, or because it is a submodule that is not checked out."""

    root: Path
    around: Path
    names: tuple[str, ...]
    has_lqray: bool
    secrets: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def tells(self) -> bool:
        """Whether its lqray says in a job which code it is, and records what the sender knows; older ones do not."""
        return _TELLS in self.names

    @property
    def code(self) -> tuple[str, ...]:
        """Of `names`, lqray's own Python files."""
        return tuple(one for one in self.names if self.has_lqray and one.startswith("lqray/") and one.endswith(".py"))


def working_tree(place: Path) -> WorkingTree:
    """The one around a folder.

    In a git repository those are the files that git tracks or does not ignore, of its submodules, too; elsewhere all
    but what Ray leaves out (.git, .venv, __pycache__, what .gitignore and .rayignore name), from the folder on that
    holds lqray, if one above `place` does. Where lqray lies deeper in a repository, its folder is what is sent. Native
    libraries are of one machine and stay here, and so do results of lqray's, and files that by their names, or those
    that links lead to, hold secrets. Raises PackageError where git fails, for several lqrays of which none is around
    `place`, for a link that leads out of the tree, and for a name that is not UTF-8.
    """
    place = place.resolve()
    top = _toplevel(place)
    absent: list[str] = []
    if top is None:
        around = next((one for one in (place, *place.parents) if _holds_lqray(one)), place)
        names = [one.relative_to(around).as_posix() for one in _walk(around, _default_excludes())]
    else:
        around = top
        names = list(_listed(top, "", absent))
    below = _place_of_lqray(around, place, names)
    root = around / below if below else around
    prefix = f"{below}/" if below else ""
    # A file in conflict is listed once for each of its versions.
    inside = sorted({one.removeprefix(prefix) for one in names if one.startswith(prefix) and not _native(one)})
    check_names(root, inside)
    results = _results(inside)
    chosen = [one for one in inside if one not in results]
    secret = {one for one in chosen if _secret(root, one)}
    return WorkingTree(
        root,
        around,
        tuple(one for one in chosen if one not in secret),
        below is not None,
        tuple(sorted(secret)),
        tuple(one for one in inside if one in results),
        tuple(absent),
    )


def _place_of_lqray(around: Path, place: Path, names: Sequence[str]) -> str | None:
    """The folder, relative to `around`, "" for itself, in which the tree holds lqray; None where it does not."""
    first, second = _OF_LQRAY
    known = set(names)
    found = {one[: -len(first)].rstrip("/") for one in known if one == first or one.endswith(f"/{first}")}
    found = {one for one in found if (f"{one}/{second}" if one else second) in known}
    if not found:
        return None
    for folder in (place, *place.parents):  # the one that whoever stands here is in
        if folder.is_relative_to(around) and (here := _relative(folder, around)) in found:
            return here
    own = Path(lqray.__file__).resolve().parents[1]
    if own.is_relative_to(around) and (here := _relative(own, around)) in found:
        return here
    if len(found) > 1:
        raise PackageError(
            f"{around} holds lqray {len(found)} times, in {', '.join(sorted(found))}: which one is to run cannot be "
            "told; go into the folder of that one, or name the others in .gitignore"
        )
    return found.pop()


def _relative(folder: Path, around: Path) -> str:
    return "" if folder == around else folder.relative_to(around).as_posix()


def _holds_lqray(folder: Path) -> bool:
    return all((folder / one).is_file() for one in _OF_LQRAY)


def _results(names: Sequence[str]) -> set[str]:
    """Of the files, those that lqray wrote: a store, artifacts, and the folders of trials, known by checkpoints."""
    trials = {PurePosixPath(one).parent for one in names if _CHECKPOINT.fullmatch(PurePosixPath(one).name)}

    def result(name: str) -> bool:
        path = PurePosixPath(name)
        return (
            not _RESULT_FOLDERS.isdisjoint(path.parts[:-1])
            or _RESULT_FILE.fullmatch(path.name) is not None
            or _CHECKPOINT.fullmatch(path.name) is not None
            or (path.parent != PurePosixPath() and path.parent in trials)
        )

    return {one for one in names if result(one)}


def check_names(root: Path, names: Iterable[str]) -> None:
    """Raise PackageError for a name that cannot be written down elsewhere."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise PackageError(
                f"{os.fsencode(name)!r} in {root} is a file whose name is not UTF-8, which no archive holds as it is; "
                "rename it, or name it in .gitignore"
            ) from error


def _secret(tree: Path, name: str) -> bool:
    """Whether a file is to stay here. Raises PackageError where a link leads to one outside the tree, which nobody has
    thought of sending."""
    if is_secret_file(name):
        return True
    found = (tree / name).resolve()
    if not found.is_relative_to(tree):
        raise PackageError(
            f"{name} in the working tree {tree} is a link to {found}, outside of it; whoever has the cluster's token "
            "could read that. Allowed: links within the tree. Name it in .gitignore, or put a copy in its place"
        )
    return is_secret_file(found.relative_to(tree).as_posix())


def _native(name: str) -> bool:
    file = PurePosixPath(name).name
    return file.startswith("_native") and file.endswith(".so")


def _toplevel(place: Path) -> Path | None:
    """Of the git repository around a folder; None where there is none, or no git. Raises PackageError for one that git
    refuses to read."""
    answer = _git(place, "rev-parse", "--show-toplevel", absent_is_fine=True)
    return None if answer is None else Path(answer.removesuffix("\n")).resolve()


def _listed(root: Path, prefix: str, absent: list[str]) -> Iterator[str]:
    """Files below a repository's top that git tracks or does not ignore, those of submodules and of repositories in it
    as well; with `prefix` before them. absent: takes the submodules that are not checked out."""
    for name in (_git(root, "ls-files", "-co", "--exclude-standard", "-z") or "").split("\0"):
        path = root / name
        if not name:
            continue
        if path.is_dir() and not path.is_symlink():  # as git lists what is a repository of its own
            own = f"{prefix}{name.rstrip('/')}/"
            if (path / ".git").exists():
                yield from _listed(path, own, absent)
            else:
                absent.append(own)
        elif path.is_file():  # one that was deleted, but not from the index, is listed as well
            yield prefix + name


def _git(folder: Path, *arguments: str, absent_is_fine: bool = False) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, env=os.environ | {"LC_ALL": "C"}, check=False)
    except OSError:
        return None
    said = os.fsdecode(done.stderr).strip()
    if done.returncode == 0:
        return os.fsdecode(done.stdout)
    if absent_is_fine and _NO_REPOSITORY in said:
        return None
    raise PackageError(
        f"which files of {folder} are to be sent cannot be told: `git {' '.join(arguments)}` says: "
        f"{said[:500] or f'exit code {done.returncode}'}"
    )


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
