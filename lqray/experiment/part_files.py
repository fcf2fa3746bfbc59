"""The source files that the chosen parts of a trial come from, and their digest. Imports none of them.

A trial's id is its configuration alone. Which code it ran is recorded beside it: a digest of the files of its method,
model, dataset, optimizer, reduction and metrics, of what these import from the same room or package, and of nothing
else, so that an edit elsewhere leaves finished runs alone.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from lqray.experiment import parts
from lqray.experiment.digests import as_tag

if TYPE_CHECKING:
    from lqray.experiment.schema import Trial

KIND = "2"
"""Of digests, with what parts import; in the older one lqray's parts were a file each."""

_PACKAGE = Path(__file__).resolve().parent.parent
_PLACES = {
    "quantizer": "quantization.methods",
    "model": "training.models",
    "data": "training.data",
    "optimizer": "training.optimizers",
    "exchange": "communication.reductions",
    "task": "training.tasks",
}
_CARRIES_OUT = {"lqray.quantization.methods": "lqray.quantization.quantizer"}
"""A part that imports the one is a description, which the other carries out."""
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_MOST_FILES = 1000


def part_names(trial: Trial) -> tuple[tuple[str, str], ...]:
    """(section, name) of each part of a trial, as messages name it."""
    return (
        ("quantizer", trial.quantizer.method),
        ("model", trial.model.name),
        ("data", trial.data.name),
        ("optimizer", trial.optimizer.name),
        ("exchange", trial.exchange.reduction),
        *(("metric", reference) for reference in trial.metrics),
        *([("task", trial.task.name)] if trial.task.name != "classification" else []),
    )


def parts_digest(trial: Trial) -> str:
    """The digest (`digests.as_tag`) of `part_files` of all parts, as they are when it is first asked for."""
    return _digest(part_names(trial))


def own_digests(trial: Trial) -> dict[str, str]:
    """Of a user's own parts of a trial, each as messages name it, such as `model my_nets:build`, to the digest of its
    files: what every process that trains must have in common."""
    return {f"{section} {name}": _of_part(section, name)[:12] for section, name in _own(trial)}


def own_files(trials: Iterable[Trial], folder: Path) -> dict[str, Path]:
    """The files of users' own parts that lie in a folder, by their names below it."""
    named = dict.fromkeys(one for trial in trials for one in _own(trial))
    files = {file.resolve() for section, name in named for file in part_files(section, name).values()}
    place = folder.resolve()
    return {file.relative_to(place).as_posix(): file for file in sorted(files) if file.is_relative_to(place)}


def _own(trial: Trial) -> list[tuple[str, str]]:
    return [(section, name) for section, name in part_names(trial) if parts.is_reference(name)]


@lru_cache(maxsize=10_000)
def _digest(named: tuple[tuple[str, str], ...]) -> str:
    digest = hashlib.sha256()
    for section, name in named:
        digest.update(f"{section}\0{name}\0{_of_part(section, name)}\0".encode())
    return as_tag(KIND, digest)


@lru_cache(maxsize=1000)
def _of_part(section: str, name: str) -> str:
    digest = hashlib.sha256()
    for logical, file in sorted(part_files(section, name).items()):
        digest.update(f"{logical}\0".encode())
        with suppress(OSError):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def part_files(section: str, name: str) -> dict[str, Path]:
    """Module to file of one part: its own, and of what it imports, and so on, those that lie in the same place.

    That is, of a part of lqray's, its room, such as lqray.quantization; of an installed package, the package that its
    module is in; of a user's, the top-level package, or, of a module without one, its folder. {} where they are not
    found.
    """
    if not parts.is_reference(name):
        module = f"lqray.{_PLACES[section]}.{name}"
        room = module.split(".")[1]
        return _closure(module, lambda one: one.startswith(f"lqray.{room}."), packages=False)
    module = name.partition(":")[0]
    file = _file_of(module)
    if file is None:
        return {}
    is_package, installed = file.stem == "__init__", not _INSTALLED.isdisjoint(file.parts)
    if not is_package and "." not in module:
        return {module: file} if installed else _closure(module, lambda one: _is_beside(file.parent, one))
    scope = module.partition(".")[0]
    if installed:
        scope = module if is_package else module.rpartition(".")[0]
    return _closure(module, lambda one: one == scope or one.startswith(f"{scope}."))


def _is_beside(folder: Path, module: str) -> bool:
    """Whether a module is of a user's folder: neither lqray, whose tree it may be, nor of an environment in it."""
    file = None if module.partition(".")[0] == _PACKAGE.name else _file_of(module)
    return file is not None and file.is_relative_to(folder) and _INSTALLED.isdisjoint(file.relative_to(folder).parts)


def _closure(module: str, inside: Callable[[str], bool], packages: bool = True) -> dict[str, Path]:
    """A module and all that it imports, directly or not, and that is inside. packages: those around them, too, whose
    __init__.py Python executes; lqray's own only hand names on."""
    found: dict[str, Path] = {}
    left = [module]
    while left and len(found) < _MOST_FILES:
        one = left.pop()
        file = _file_of(one) if one not in found and inside(one) else None
        if file is None:
            continue
        found[one] = file
        left += _imported(file, one if file.stem == "__init__" else one.rpartition(".")[0])
        left += [_CARRIES_OUT[one]] if one in _CARRIES_OUT else []
        if packages:
            left += [".".join(one.split(".")[:depth]) for depth in range(1, one.count(".") + 1)]
    return found


def _file_of(module: str) -> Path | None:
    """A module's source, of a package its __init__.py, found without importing the packages around it; None where there
    is none."""
    top, *words = module.split(".")
    file, folders = _top(top)
    for word in words:
        found = [Path(folder) / word for folder in folders]
        files = [path for one in found for path in (one / "__init__.py", one.with_name(f"{word}.py"))]
        file = next((path for path in files if path.is_file()), None)
        if file is None:
            folders = [str(one) for one in found if one.is_dir()]
        else:
            folders = [str(file.parent)] if file.stem == "__init__" else []
    return file


def _top(name: str) -> tuple[Path | None, list[str]]:
    """Of a module that is in no package: its file, and, if it is a package, where its modules are."""
    if name == _PACKAGE.name:
        return _PACKAGE / "__init__.py", [str(_PACKAGE)]
    parts.look_there()
    spec = None
    with suppress(ImportError, ValueError, OSError):
        spec = PathFinder.find_spec(name) or importlib.util.find_spec(name)
    if spec is None:
        return None, []
    file = Path(spec.origin) if spec.origin and spec.has_location and spec.origin.endswith(".py") else None
    return file, list(spec.submodule_search_locations or [])


@lru_cache(maxsize=10_000)
def _imported(file: Path, package: str) -> tuple[str, ...]:
    """Modules that a file may import, by name, wherever it says so."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ()
    return tuple(dict.fromkeys(name for node in _statements(tree) for name in _names(node, package)))


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Its statements and what holds statements: imports are in no expression, which most nodes belong to."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        yield node
        for key in ("body", "orelse", "finalbody", "handlers", "cases"):
            below = getattr(node, key, None)
            left += below if isinstance(below, list) else []


def _names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        start = ".".join([*filter(None, base), *([node.module] if node.module else [])])
        if start:
            yield start
        yield from (f"{start}.{alias.name}" if start else alias.name for alias in node.names)
