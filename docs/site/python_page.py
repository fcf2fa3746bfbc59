"""The page of what `import lqray` offers, and modules that documents name: signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any

from markdown import one_line, paragraphs, table
from options_page import UndocumentedError

import lqray

_RESULTS = {
    "lqray.api": ["Swept"],
    "lqray.communication.attach": ["AttachedExchange"],
    "lqray.communication.sharded": ["ShardedExchange"],
    "lqray.communication.functional": ["PendingResult"],
}
"""What the functions of lqray give back."""
_OWN_PARTS = {
    "lqray.quantization": None,
    "lqray.training.dataset": ["Dataset"],
    "lqray.training.images": ["Images", "ImageClassification"],
    "lqray.testing": None,
    "lqray.orchestration.models": ["load_model"],
    "lqray.training.capture": ["read_captures"],
}
"""Modules that guides and examples import from; None: all of their `__all__`."""


def page() -> str:
    """Markdown. Raises UndocumentedError for a name, or a method of a class, without a docstring."""
    public = {name: lqray._PUBLIC[name] for name in lqray.__all__}
    blocks = [
        "# Python",
        "Names of `import lqray` are imported when they are first asked for. How they go together: "
        "[from Python](../guide/python.md), [your own script](../start/own-script.md), "
        "[own parts](../guide/own-parts.md).",
        "## `import lqray`",
        _listed(public),
        *(_thing(module, name, f"lqray.{name}") for name, module in public.items()),
        "## What they give back",
        *_of(_RESULTS),
        "## For parts of your own",
        *_of(_OWN_PARTS),
    ]
    return "\n\n".join(blocks)


def names() -> set[str]:
    """Every `module.name` that the page has, and `lqray.name`."""
    found = {f"lqray.{name}" for name in lqray.__all__}
    for module, chosen in {**_RESULTS, **_OWN_PARTS}.items():
        found |= {f"{module}.{name}" for name in chosen or import_module(module).__all__}
    return found


def _listed(public: dict[str, str]) -> str:
    rows = []
    for name, module in public.items():
        text = _doc(getattr(import_module(module), name), f"lqray.{name}").split("\n\n")[0]
        rows.append([f"[`lqray.{name}`](#lqray{name.lower()})", one_line(re.split(r"(?<=\.)\s", text)[0])])
    return table(("name", "what"), rows)


def _of(modules: dict[str, Any]) -> list[str]:
    return [
        _thing(module, name, f"{module}.{name}")
        for module, chosen in modules.items()
        for name in chosen or import_module(module).__all__
    ]


def _thing(module: str, name: str, title: str) -> str:
    thing = getattr(import_module(module), name)
    blocks = [f"### `{title}`", _signature(name, thing), paragraphs(_doc(thing, title))]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        for method, value in _members(thing):
            blocks += [_member(method, value), paragraphs(_doc(_told(thing, method, value), f"{title}.{method}"))]
    return "\n\n".join(filter(None, blocks))


def _members(cls: type) -> list[tuple[str, Any]]:
    """Public methods and properties that lqray's classes define, in the order of their sources, bases last."""
    found: dict[str, Any] = {}
    for each in cls.__mro__:
        if each.__module__.startswith("lqray."):
            for name, value in vars(each).items():
                if not name.startswith("_") and _is_member(value):
                    found.setdefault(name, value)
    return list(found.items())


def _told(cls: type, name: str, value: Any) -> Any:
    """A member, or what it overrides, whichever has a docstring first."""
    overridden = [vars(each).get(name) for each in cls.__mro__]
    return next((one for one in overridden if getattr(one, "__doc__", None)), value)


def _is_member(value: Any) -> bool:
    return isinstance(value, property | classmethod | staticmethod) or inspect.isfunction(value)


def _member(name: str, value: Any) -> str:
    if isinstance(value, property):
        returns = inspect.signature(value.fget).return_annotation if value.fget else ""
        return f"```python\n.{name}: {returns}\n```" if returns is not inspect.Signature.empty else f"`.{name}`"
    return _signature(f".{name}", value.__func__ if isinstance(value, classmethod | staticmethod) else value)


def _signature(name: str, thing: Any) -> str:
    """As one would write it; long ones with a line for each argument."""
    try:
        signature = inspect.signature(thing)
    except ValueError:
        return ""
    own = [one for key, one in signature.parameters.items() if key not in ("self", "cls")]
    short = f"{name}{signature.replace(parameters=own)}".replace("'", "")
    if len(short) <= 90:
        return f"```python\n{short}\n```"
    lines, star = [], any(one.kind is one.VAR_POSITIONAL for one in own)
    for one in own:
        if one.kind is one.KEYWORD_ONLY and not star:
            lines.append("    *,")
            star = True
        lines.append(f"    {one},".replace("'", ""))
    returns = "" if signature.return_annotation is signature.empty else f" -> {signature.return_annotation}"
    return "```python\n" + "\n".join([f"{name}(", *lines, f"){returns}".replace("'", "")]) + "\n```"


def _doc(thing: Any, where: str) -> str:
    plain = thing.__func__ if isinstance(thing, classmethod | staticmethod) else thing
    text = inspect.cleandoc(getattr(plain, "__doc__", None) or "")
    if not text:
        raise UndocumentedError(f"{where} has no docstring: say what it gives back, shapes, units and errors")
    return text
