"""The source files that the chosen parts of a trial come from, and their digest. Imports none of them.

A trial's id is its configuration alone. Which code it ran is recorded beside it: a digest of the files of its method,
model, dataset, optimizer and reduction, and of nothing else, so that an edit elsewhere leaves finished runs alone.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from lqray.experiment import parts

if TYPE_CHECKING:
    from lqray.experiment.schema import Trial

_PACKAGE = Path(__file__).resolve().parent.parent
_FOLDERS = {
    "quantizer": "quantization/methods",
    "model": "training/models",
    "data": "training/data",
    "optimizer": "training/optimizers",
    "exchange": "communication/reductions",
}
_MOST_FILES = 1000


def part_names(trial: Trial) -> tuple[tuple[str, str], ...]:
    """(section, name) of each part of a trial."""
    return (
        ("quantizer", trial.quantizer.method),
        ("model", trial.model.name),
        ("data", trial.data.name),
        ("optimizer", trial.optimizer.name),
        ("exchange", trial.exchange.reduction),
    )


def parts_digest(trial: Trial) -> str:
    """12 hexadecimal digits of the SHA-256 of `part_files` of all parts, as they are when it is first asked for."""
    return _digest(part_names(trial))


@lru_cache(maxsize=10_000)
def _digest(named: tuple[tuple[str, str], ...]) -> str:
    digest = hashlib.sha256()
    for section, name in named:
        digest.update(f"{section}\0{name}\0{_of_part(section, name)}\0".encode())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=1000)
def _of_part(section: str, name: str) -> str:
    digest = hashlib.sha256()
    for logical, file in sorted(part_files(section, name).items()):
        digest.update(f"{logical}\0".encode())
        with suppress(OSError):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def part_files(section: str, name: str) -> dict[str, Path]:
    """Module to file of one part: of lqray's, its own file; of a user's, that of its module, and of whatever it imports
    that lies in the same top-level package, or, where it has none, in the same folder. {} where they are not found."""
    if not parts.is_reference(name):
        file = _PACKAGE / _FOLDERS[section] / f"{name}.py"
        return {name: file} if file.is_file() else {}
    module = name.partition(":")[0]
    top = _spec(module.partition(".")[0])
    if top is None or not top.origin or not top.has_location:
        return {}
    found: dict[str, Path] = {}
    root, left = Path(top.origin).parent, [module]
    inside = bool(top.submodule_search_locations)
    while left and len(found) < _MOST_FILES:
        one = left.pop()
        spec = None if one in found else _spec(one)
        if spec is None or not spec.origin or Path(spec.origin).suffix != ".py":
            continue
        if not Path(spec.origin).is_relative_to(root) or (inside and one.partition(".")[0] != top.name):
            continue
        found[one] = Path(spec.origin)
        package = one if spec.submodule_search_locations else one.rpartition(".")[0]
        left += _imported(Path(spec.origin), package)
        left += [".".join(one.split(".")[:depth]) for depth in range(1, one.count(".") + 1)]
    return found


def _spec(module: str) -> ModuleSpec | None:
    """Where a module is, without importing the packages around it."""
    words, path, spec = module.split("."), None, None
    parts.look_there()
    for depth in range(1, len(words) + 1):
        with suppress(ImportError, ValueError, OSError):
            spec = PathFinder.find_spec(".".join(words[:depth]), path)
        if spec is None:
            return None
        if depth < len(words):
            if not spec.submodule_search_locations:
                return None
            path, spec = list(spec.submodule_search_locations), None
    return spec


def _imported(file: Path, package: str) -> Iterator[str]:
    """Modules that a file may import, by name, wherever it says so."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*filter(None, base), *([node.module] if node.module else [])])
            if start:
                yield start
            yield from (f"{start}.{alias.name}" if start else alias.name for alias in node.names)
