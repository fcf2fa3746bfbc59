"""Parts of an experiment that lqray does not have: models, datasets, optimizers, methods, ... of a user's own.

A part is named by a reference, `module.path:attribute`, as entry points are; a package that is installed may give one a
plain name, by an entry point of the group `lqray.<kind>`. Names are resolved, and nothing is imported, before a part is
needed: `load` imports it. Names of lqray's own are its file names (`names`), and come first.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from lqray.experiment import names
from lqray.experiment.errors import PartError, did_you_mean

KINDS = ("methods", "models", "datasets", "optimizers", "reductions", "metrics")
"""What a user may have of their own; `lqray.<kind>` is the group of its entry points."""
OWN = "module:attribute"
"""How a part of a user's own is written, and the tag of its options among those of lqray's names."""

_LQRAYS: dict[str, Callable[[], tuple[str, ...]]] = {
    "methods": names.methods,
    "models": names.models,
    "datasets": names.datasets,
    "optimizers": names.optimizers,
    "reductions": names.reductions,
}
_REFERENCE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def is_reference(name: object) -> bool:
    """Whether a name is written `module.path:attribute`; the attribute may be dotted, too."""
    return isinstance(name, str) and _REFERENCE.fullmatch(name) is not None


def reference_of(kind: str, name: object) -> str | None:
    """The reference that a name stands for: itself where it is one, else that of an entry point of the group
    `lqray.<kind>`; None for names of lqray's own, and for those that nobody has. Imports nothing.

    Raises PartError where several installed packages have an entry point of that name.
    """
    if is_reference(name):
        return str(name)
    if not isinstance(name, str) or name in lqrays(kind):
        return None
    given = _entry_points(kind).get(name, ())
    if len(given) > 1:
        raise PartError(
            f"the name {name!r}: found several entry points of the group lqray.{kind}: {', '.join(given)}; allowed: "
            "one of these references, written out"
        )
    return given[0] if given else None


def is_own(kind: str, name: object) -> bool:
    """Whether `reference_of` has a reference for a name, or several to choose from."""
    if is_reference(name):
        return True
    return isinstance(name, str) and name not in lqrays(kind) and name in _entry_points(kind)


def lqrays(kind: str) -> tuple[str, ...]:
    """The names of that kind that lqray itself has."""
    return _LQRAYS[kind]() if kind in _LQRAYS else ()


def known(kind: str) -> tuple[str, ...]:
    """All plain names of that kind: lqray's, and those of entry points."""
    return (*lqrays(kind), *(name for name in _entry_points(kind) if name not in lqrays(kind)))


@cache
def _entry_points(kind: str) -> dict[str, tuple[str, ...]]:
    """Plain name to the references that installed packages give it, sorted."""
    found: dict[str, set[str]] = {}
    for point in importlib.metadata.entry_points(group=f"lqray.{kind}"):
        reference = point.value.partition("[")[0].replace(" ", "")
        if is_reference(reference):
            found.setdefault(point.name, set()).add(reference)
    return {name: tuple(sorted(found[name])) for name in sorted(found)}


_places: list[str] = []
_added: list[str] = []
"""Of Python's path, what `load` has added."""


def add_place(folder: str | os.PathLike[str]) -> None:
    """Let this process look for parts in a folder, too, after all other places: that of the experiment's file."""
    if (text := os.path.abspath(folder)) not in _places:  # noqa: PTH100 (a folder need not exist)
        _places.append(text)
    look_there()  # processes that are started begin with this one's path


def places() -> tuple[str, ...]:
    """Where this process looks for parts, beside Python's path: folders, from the working directory on."""
    try:
        here = [os.getcwd()]  # noqa: PTH109
    except FileNotFoundError:  # it was removed meanwhile
        here = []
    return tuple(dict.fromkeys([*here, *_places]))


def load(kind: str, reference: str) -> Any:
    """Import the module of a reference and give its attribute.

    Modules are looked for on Python's path, then in the working directory, then in the folders that `add_place` was
    told: a file queue.py of a user's own is not taken for Python's. Raises PartError, which says what to do, where the
    module or the attribute is not found, or the module does not import.
    """
    module_name, _, attribute = reference.partition(":")
    value: Any = _module(f"{_singular(kind)} {reference}", module_name)
    for name in attribute.split("."):
        if not hasattr(value, name):
            there = (
                sorted(each for each in vars(value) if not each.startswith("_")) if hasattr(value, "__dict__") else []
            )
            hint = did_you_mean(name, there)
            raise PartError(
                f"{_singular(kind)} {reference}: found no attribute {name!r} in {_described(value)}; allowed: one of "
                f"its names: {', '.join(there[:20]) or 'it has none'}" + (f"; {hint}" if hint else "")
            )
        value = getattr(value, name)
    return value


def call(what: str, part: Any, **arguments: Any) -> Any:
    """Call a part with its arguments, by position. Raises PartError where it is nothing to be called with them."""
    wanted = ", ".join(arguments)
    if not callable(part):
        raise PartError(f"{what}: found {type(part).__name__} {part!r:.80}; allowed: a function of ({wanted})")
    try:
        signature = inspect.signature(part)
    except (TypeError, ValueError):  # of a function that says nothing of its parameters
        return part(*arguments.values())
    try:
        signature.bind(*arguments.values())
    except TypeError as error:
        raise PartError(f"{what}: found a function of {signature}; allowed: one of ({wanted})") from error
    return part(*arguments.values())


def checked(what: str, value: Any, wanted: type) -> Any:
    """What a part made. Raises PartError where it is nothing of the type that is wanted."""
    if not isinstance(value, wanted):
        of_protocol = vars(wanted) if getattr(wanted, "_is_protocol", False) else ()
        members = [name for name in of_protocol if not name.startswith("_")]
        missing = [name for name in members if not hasattr(value, name)]
        lacks = f", which has no {', '.join(missing)}" if missing else ""
        raise PartError(f"{what}: found that it makes a {type(value).__name__}{lacks}; allowed: a {wanted.__name__}")
    return value


def _singular(kind: str) -> str:
    return kind.removesuffix("s")


def _described(value: Any) -> str:
    file = getattr(value, "__file__", None)
    return f"{value.__name__} ({file})" if file else f"{getattr(value, '__qualname__', value)!s}"


def _module(what: str, name: str) -> ModuleType:
    look_there()
    importlib.invalidate_caches()
    _refuse_another(what, name.partition(".")[0])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise PartError(_not_found(what, error.name)) from error
        raise PartError(
            f"{what}: found a module that imports {error.name or 'another'}, which is not here ({error}); allowed: "
            f"modules whose own imports are installed where trials run, or lie beside them"
        ) from error
    except Exception as error:
        raise PartError(
            f"{what}: importing {name} raised {type(error).__name__}: {error}; allowed: a module that imports "
            f'(`python -c "import {name}"` shows the whole error)'
        ) from error


def look_there() -> None:
    """Have on Python's path, at its end, where parts are looked for."""
    sys.path[:] = [place for place in sys.path if place not in _added]
    _added[:] = [place for place in places() if place not in sys.path]
    sys.path.extend(_added)


def _refuse_another(what: str, top: str) -> None:
    """Of one process all parts have the same places: a module of another folder with an equal name is not theirs."""
    loaded = sys.modules.get(top)
    spec = PathFinder.find_spec(top) if loaded is not None else None
    had, origin = getattr(loaded, "__file__", None), spec.origin if spec else None
    if had and origin and os.path.realpath(had) != os.path.realpath(origin):
        raise PartError(
            f"{what}: found that this process has imported {top} from {had} before, and {top} is {origin} now; "
            "allowed: module names that are of one place each"
        )


def _not_found(what: str, missing: str) -> str:
    return (
        f"{what}: found no module {missing}, in {', '.join(places())} or on Python's path; allowed: a "
        f"module that Python finds: run in the folder that {missing} is in, name that folder in the environment "
        f"variable PYTHONPATH, or install its package (pip install -e FOLDER)"
    )
