"""Strict YAML: numbers as people write them, no duplicate keys, no tags, and the line of every value.

PyYAML's SafeLoader reads `1e-3` as a string and `no` as False, and keeps the last of two equal keys without a word.
Here PyYAML parses and composes; scalars are resolved by the YAML 1.2 core schema.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lqray.experiment.errors import ExperimentError, Problem, shortened

Path_ = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*\Z|0x[0-9a-fA-F]+\Z|0o[0-7]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = {".nan": "nan", ".inf": "inf", "+.inf": "inf", "-.inf": "-inf"}
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_MAX_NODES = 100_000
_MAX_BYTES = 2 * 2**20
"""More than any experiment that a person writes; PyYAML reads some hundred kilobytes of them a second."""
_MAX_LEVELS = 50
"""An experiment file has eight at most; Python's own stack ends at a few hundred."""
_MAX_INTEGER = 2**64
_MOST_DIGITS = 1000
"""Python refuses to read integers of some thousand digits."""
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of a pair, and separators of lines and paragraphs."""


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: plain Python data, the line (from 1) where each value, named by its path, begins, and the
    text that all of it was read from."""

    file: str
    data: Any
    lines: dict[Path_, int]
    text: str

    def line_of(self, path: Path_) -> int | None:
        """Line of the value at `path`, or of its nearest enclosing value; None for an empty document."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None


def load(path: str | Path) -> Document:
    """Read a YAML file.

    Raises ExperimentError: unreadable file, not YAML, duplicate key, explicit tag, merge key, recursive alias, a key
    that is not a string, a control character, an integer beyond 64 bits, or more bytes, values or levels than allowed.
    """
    file = str(path)
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        text = content.decode("utf-8") if len(content) <= _MAX_BYTES else ""
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or f"bytes that are not UTF-8 ({error})"
        raise ExperimentError([Problem(file, None, "", reason, "a readable YAML file in UTF-8")]) from error
    if len(content) > _MAX_BYTES:
        raise ExperimentError([_too_long(file)])
    return parse(text.replace("\r\n", "\n").replace("\r", "\n"), file)


def parse(text: str, file: str = "<string>") -> Document:
    """Parse YAML text; `file` is the name used in errors. Raises as `load`."""
    if len(text) > _MAX_BYTES:
        raise ExperimentError([_too_long(file)])
    try:
        root = _composed(text)
    except yaml.YAMLError as error:
        raise ExperimentError([_not_yaml(error, text, file)]) from error
    builder = _Builder(file)
    data = builder.build(root, ()) if root is not None else None
    return Document(file, data, builder.lines, text)


def _too_long(file: str) -> Problem:
    allowed = f"at most {_MAX_BYTES // 2**20} MiB"
    return Problem(file, None, "", f"more than {_MAX_BYTES // 2**20} MiB of text", allowed, "an experiment is a few KB")


def _not_yaml(error: yaml.YAMLError, text: str, file: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else None
    found = getattr(error, "problem", None) or str(error)
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        found = f"the character {chr(error.character)!r}" if isinstance(error.character, int) else error.reason
    if isinstance(error, _TooDeepError):
        return Problem(file, line, "", found, f"at most {_MAX_LEVELS} levels")
    return Problem(file, line, "", found, "well-formed YAML, one document")


def _composed(text: str) -> yaml.Node | None:
    """What yaml.compose gives; PyYAML's own errors are all that it raises."""
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    except (ValueError, OverflowError) as error:
        mark = loader.get_mark()
        found = "a number in an escape or a directive that stands for nothing"
        raise yaml.MarkedYAMLError(problem=f"{found} ({error})", problem_mark=mark) from error
    finally:
        loader.dispose()


class _TooDeepError(yaml.MarkedYAMLError):
    """Lists and mappings within each other beyond the limit."""


class _Loader(yaml.SafeLoader):
    """PyYAML composes nodes by recursion; this one counts how deep."""

    _level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._level > _MAX_LEVELS:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _TooDeepError(problem=f"over {_MAX_LEVELS} levels of lists and mappings", problem_mark=mark)
        self._level += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
            return node
        finally:
            self._level -= 1


class _Builder:
    """Turns PyYAML nodes into plain data while remembering lines; refuses what the module's docstring refuses."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path_, int] = {}
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: Path_) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if len(self.lines) > _MAX_NODES:
            raise self._error(node, path, f"over {_MAX_NODES:,} values", "aliases that do not multiply a file's size")
        if id(node) in self._open:
            raise self._error(node, path, "an alias to a value that contains it", "aliases to finished values")
        if len(path) > _MAX_LEVELS:
            raise self._error(node, path, f"over {_MAX_LEVELS} levels, through aliases", f"at most {_MAX_LEVELS}")
        self._refuse_tag(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._value(node, path)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, path: Path_) -> dict[Hashable, Any]:
        result: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            self._refuse_tag(key_node, path)
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(self._value(key_node, path), str):
                raise self._error(key_node, path, f"the key {_text(key_node)}", "keys that are words")
            key = key_node.value
            if key == "<<" and key_node.style is None:
                raise self._error(key_node, path, "a merge key '<<'", "keys written out")
            here = (*path, key)
            if key in result:
                raise self._error(
                    key_node, here, f"the key a second time (first on line {self.lines[here]})", "each key once"
                )
            self.lines[here] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, here)
        return result

    def _value(self, node: yaml.ScalarNode, path: Path_) -> Any:
        value = _scalar(node)
        if isinstance(value, str) and any(unicodedata.category(each) in _UNSEEN for each in value):
            found = f"{shortened(repr(value))}, which has a line break or another control character in it"
            raise self._error(node, path, found, "words in one line, without control characters")
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise self._error(node, path, f"an integer of {len(node.value)} characters", "integers of at most 64 bits")
        return value

    def _refuse_tag(self, node: yaml.Node, path: Path_) -> None:
        if node.tag and not node.tag.startswith("tag:yaml.org,2002:"):
            raise self._error(node, path, f"the tag {node.tag}", "plain values; tags run code or change types")
        known = {"null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge", "value"}
        if node.tag.removeprefix("tag:yaml.org,2002:") not in known:
            short = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise self._error(node, path, f"the tag {short}", "plain values; tags run code or change types")

    def _error(self, node: yaml.Node, path: Path_, found: str, allowed: str) -> ExperimentError:
        line = node.start_mark.line + 1
        return ExperimentError([Problem(self.file, line, dotted(path), found, allowed)])


def leading_comment(text: str) -> str:
    """The comment that a YAML file begins with, without its #s: lines stay lines; "" without one."""
    lines = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("#"):
            lines.append(line.lstrip("#").strip())
        elif line or any(lines):
            break
    return "\n".join(lines).strip()


def dotted(path: Path_) -> str:
    """`("sweep", 0, "matrix", "seed")` as `sweep[0].matrix.seed`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _text(node: yaml.Node) -> str:
    return shortened(repr(node.value)) if isinstance(node, yaml.ScalarNode) else "a list or a mapping"


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if node.style is not None:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.match(text):
        if len(text) > _MOST_DIGITS:
            return _MAX_INTEGER + 1
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.match(text):
        return float(text)
    if text.lower() in _SPECIAL:
        return float(_SPECIAL[text.lower()])
    return text
