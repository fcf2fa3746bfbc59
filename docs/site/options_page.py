"""Pages of every option of an experiment file, made of the classes that validate it and their fields' docstrings."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from markdown import one_line, paragraphs, table
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import lqray
from lqray.experiment import layout, names
from lqray.experiment.options import budget, data, model, optimizer, own, quantizer, task
from lqray.experiment.options.search import Domain, EarlyStopping
from lqray.experiment.options.section import Section, Variant
from lqray.experiment.schema import Trial

PACKAGE = Path(lqray.__file__).parent
_VARIANTS: dict[str, tuple[dict[str, type[Variant]], tuple[str, ...], type[Variant], type[Variant] | None, str]] = {
    "data": (data.DATA, names.datasets(), data.DataOptions, data.OwnDataOptions, "training/data"),
    "model": (model.MODEL, names.models(), model.ModelOptions, model.OwnModelOptions, "training/models"),
    "optimizer": (
        *(optimizer.OPTIMIZER, names.optimizers(), optimizer.DecayOptions),
        *(optimizer.OwnOptimizerOptions, "training/optimizers"),
    ),
    "quantizer": (
        *(quantizer.QUANTIZER, names.methods(), quantizer.FixedLevelsOptions),
        *(quantizer.OwnMethodOptions, "quantization/methods"),
    ),
    "task": (task.TASK, names.tasks(), task.TaskOptions, None, "training/tasks"),
}
"""Sections whose class is chosen by a name: classes by name, names, the class of a name without one, the class of parts
of a user's own, and where the named modules are."""
_OUTSIDE: dict[str, type[Section]] = {
    "resources": layout.Resources,
    "storage": layout.Storage,
    "tracking": layout.Tracking,
    "search": layout.Search,
}
"""Sections of a file that are no part of a trial."""
_IN_SEARCH = {"space": Domain, "early_stopping": EarlyStopping}
_KEYS = {
    "name": "What the experiment is called, also in MLflow: letters, digits, `_`, `.` and `-`; required.",
    "base": "What every trial starts from: sections and keys of a trial.",
    "sweep": "Blocks of `matrix`, `include` and `exclude`, whose union the trials are; without it, one trial: `base`.",
    "labels": "How tables and figures call keys and their values: `KEY: HEADING`, `KEY: {VALUE: NAME}`, or "
    "`KEY: {heading: ..., values: {...}}`.",
}
"""Keys of a file that no class stands for."""


class UndocumentedError(ValueError):
    """An option, a class of options or a named part without a docstring."""


def pages() -> dict[str, str]:
    """Markdown by path below docs/reference: the list of sections, and a page for each. Raises UndocumentedError."""
    sections = {key: info for key, info in Trial.model_fields.items() if _is_section(key, info)}
    plain = {key: info for key, info in Trial.model_fields.items() if key not in sections}
    found = {}
    for key, info in sections.items():
        found[f"options/{key}.md"] = _variant_page(key) if key in _VARIANTS else _section_page(key, info.annotation)
    for key, cls in _OUTSIDE.items():
        found[f"options/{key}.md"] = _section_page(key, cls, _IN_SEARCH if key == "search" else {})
    found["options.md"] = _overview(sections, plain)
    return found


def documented(cls: type[BaseModel], field: str) -> str:
    """The docstring below a field, in the class that has it last. Raises UndocumentedError."""
    for each in cls.__mro__:
        if issubclass(each, BaseModel) and field in each.__annotations__ and each.__module__ != "pydantic.main":
            where = f"{each.__module__}.{each.__qualname__}.{field}"
            text = _docstrings(sys.modules[each.__module__]).get(each.__qualname__, {}).get(field)
            if not text:
                raise UndocumentedError(f"{where} has no docstring: say below it what it means, and in which unit")
            return text
    raise UndocumentedError(f"{cls.__name__} has no field {field}")


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a value may be, in words with a range."""
    metadata = list(metadata)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return allowed(arguments[0], [*arguments[1:], *metadata])
    flat = [item for each in metadata for item in (each.metadata if isinstance(each, FieldInfo) else [each])]
    functions = {getattr(item, "func", None) for item in flat}
    if own._json in functions:
        return "mapping"
    if budget._validated in functions:
        return f"{_bounded(annotation, flat)}; or `{{PATTERN: NUMBER, default: NUMBER}}`"
    return _bounded(annotation, flat)


def _bounded(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is bool:
        return "`true`, `false`"
    if origin is Literal:
        return ", ".join(f"`{_plain(value)}`" for value in arguments)
    if origin in (Union, UnionType):
        return ", or ".join("`null`" if one is NoneType else allowed(one, metadata) for one in arguments)
    if annotation in (int, float):
        return " ".join(filter(None, ("integer" if annotation is int else "number", _range(metadata))))
    if annotation is str:
        return "text"
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"list of {len(arguments)}: {allowed(arguments[0])}"
    if origin is tuple:
        return f"list of: {allowed(arguments[0])}"
    if annotation is Any:
        return "anything"
    return "mapping"


def _range(metadata: list[Any]) -> str:
    known = {name: getattr(one, name) for one in metadata for name in ("ge", "gt", "le", "lt") if hasattr(one, name)}
    low = f"from {_number(known['ge'])}" if "ge" in known else f"above {_number(known['gt'])}" if "gt" in known else ""
    high = f"to {_number(known['le'])}" if "le" in known else f"below {_number(known['lt'])}" if "lt" in known else ""
    return ", ".join(filter(None, (low, high))) if "gt" in known or "lt" in known else f"{low} {high}".strip()


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) or (value.is_integer() and value < 1e9) else f"{value:g}"


def _overview(sections: Mapping[str, FieldInfo], plain: Mapping[str, FieldInfo]) -> str:
    """The list of all sections, with the keys of a trial that are no section."""
    rows = []
    for key in layout._SECTIONS:
        if key in _OUTSIDE:
            rows.append([f"[`{key}`](options/{key}.md)", one_line(_first_sentence(_doc(_OUTSIDE[key])))])
        elif key in _KEYS:
            rows.append([f"`{key}`", one_line(_KEYS[key])])
        else:
            raise UndocumentedError(f"_KEYS of docs/site/options_page.py has to say what {key} of a file means")
    listed = [
        [f"[`{key}`](options/{key}.md)", one_line(_first_sentence(_doc(_base(key, info.annotation))))]
        for key, info in sections.items()
    ]
    return "\n\n".join(
        [
            "# Options of an experiment file",
            "The classes of `lqray/experiment/options/` validate a file, and these pages are made of them. An option "
            "that another name of its section has is left out of a trial; one that no trial of a file uses is an "
            "error. `lqray expand FILE` shows what a file amounts to.",
            "## The file",
            table(("key", "what"), rows),
            "## A trial",
            "Keys of `base`, of `include` and `exclude`, and, with dots between (`quantizer.bits`), of `matrix`, "
            "`--set` and `search.space`. Beside these sections:",
            _options(Trial, plain),
            table(("section", "what"), listed),
        ]
    )


def _section_page(key: str, cls: Any, parts: Mapping[str, type[BaseModel]] = MappingProxyType({})) -> str:
    """A section of one class; sections inside it, and `parts`, follow below."""
    blocks = [f"# `{key}`", paragraphs(_doc(cls)), _defaults(key, cls), _options(cls, cls.model_fields)]
    inside = {name: info.annotation for name, info in cls.model_fields.items() if _is_class(info.annotation)}
    for name, inner in {**inside, **parts}.items():
        blocks += [f"## `{key}.{name}`", paragraphs(_doc(inner)), _options(inner, inner.model_fields)]
    return "\n\n".join(blocks)


def _variant_page(key: str) -> str:
    """A section whose options depend on a name: what all names have, then each name, those of one class together."""
    classes, known, plain, own_class, folder = _VARIANTS[key]
    base = _base(key, plain)
    groups: dict[type[Variant], list[str]] = {}
    for name in known:
        groups.setdefault(classes.get(name, plain), []).append(name)
    selector = base.selector
    links = ", ".join(f"[`{name}`](#{_anchor(group)})" for group in groups.values() for name in group)
    blocks = [f"# `{key}`", paragraphs(_doc(base)), f"`{key}.{selector}` is one of {links}."]
    if own_class is not None:
        blocks[-1] = blocks[-1][:-1] + ", or [`module:attribute`](#a-part-of-your-own): one of your own."
    common = {name: info for name, info in base.model_fields.items() if name != selector}
    if common:
        blocks += [f"## With any {selector}", _options(base, common)]
    for cls, group in groups.items():
        blocks += [f"## {', '.join(f'`{name}`' for name in group)}", paragraphs(_doc(cls))]
        told = [[f"`{name}`", one_line(_of_module(f"{folder}/{name}.py"))] for name in group]
        blocks += [table((selector, "what"), told), _defaults(key, cls, group[0])]
        own_fields = {name: info for name, info in cls.model_fields.items() if name not in base.model_fields}
        blocks += [_options(cls, own_fields)] if own_fields else []
    if own_class is not None:
        own_fields = {name: info for name, info in own_class.model_fields.items() if name not in base.model_fields}
        blocks += ["## A part of your own", paragraphs(_doc(own_class)), "How: [own parts](../../guide/own-parts.md)."]
        blocks += [_options(own_class, own_fields)]
    return "\n\n".join(blocks)


def _options(cls: type[BaseModel], fields: Mapping[str, FieldInfo]) -> str:
    rows = []
    for name, info in fields.items():
        text = documented(cls, name)
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("identity") is False:
            text += " Not part of a trial's id."
        default = "required" if info.is_required() else f"`{_plain(_default(info))}`"
        rows.append([f"`{name}`", allowed(info.annotation, info.metadata).replace("|", "\\|"), default, one_line(text)])
    return table(("option", "allowed", "default", "what"), rows)


def _defaults(key: str, cls: type[BaseModel], name: str | None = None) -> str:
    """A section with its defaults, as a file has it."""
    lines = []
    for field, info in cls.model_fields.items():
        if name is not None and field == getattr(cls, "selector", None):
            lines.append(f"  {field}: {name}")
        elif info.is_required():
            lines.append(f"  {field}: ...    # required")
        else:
            value = json.loads(json.dumps({field: _default(info)}))
            lines.append(
                "  " + yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=1000).strip()[1:-1]
            )
    return "```yaml\n" + "\n".join([f"{key}:", *lines]) + "\n```"


def _default(info: FieldInfo) -> Any:
    default = info.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json")
    return None if default is PydanticUndefined else default


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=list).replace('"', "")


def _is_class(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def _is_section(key: str, info: FieldInfo) -> bool:
    return key in _VARIANTS or (_is_class(info.annotation) and issubclass(info.annotation, Section))


def _base(key: str, annotation: Any) -> Any:
    """The class that stands for a whole section: of one that is chosen by a name what all names have."""
    if key not in _VARIANTS:
        return annotation
    return next(cls for cls in _VARIANTS[key][2].__mro__ if cls.__mro__[1] is Variant)


def _doc(cls: Any) -> str:
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    if not text:
        raise UndocumentedError(f"{cls.__module__}.{cls.__qualname__} has no docstring: say what it stands for")
    return text


@cache
def _of_module(path: str) -> str:
    """The first paragraph of a module's docstring."""
    text = ast.get_docstring(ast.parse((PACKAGE / path).read_text(encoding="utf-8")))
    if not text:
        raise UndocumentedError(f"lqray/{path} has no docstring: say what it is")
    return text.split("\n\n")[0]


@cache
def _docstrings(module: ModuleType) -> dict[str, dict[str, str]]:
    """Of every class of a module the docstrings below its fields."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            fields = found[node.name] = {}
            for one, after in zip(node.body, node.body[1:], strict=False):
                text = (
                    after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
                )
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(text, str):
                    fields[one.target.id] = inspect.cleandoc(text)
    return found


def _anchor(group: list[str]) -> str:
    return "-".join(name.lower() for name in group)


def _first_sentence(text: str) -> str:
    return text.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".") + "."
