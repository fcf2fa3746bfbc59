"""docs/troubleshooting.md names every error of lqray's that people may meet and every kind of failure, and quotes only
messages that lqray's sources have."""

import ast
import builtins
import re
from functools import cache
from pathlib import Path

import pytest

from lqray.orchestration.failures import ADVICE

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
NEVER_SEEN = {
    "LaunchInterrupted": "ends a launch; the command says why in a line of its own",
    "Interrupted": "Ctrl-C",
    "StoppedError": "a trial that `lqray stop` or a rule ended: it is recorded as stopped",
    "RaisedByAllError": "what DivergedError is made of",
}
"""Errors that are told otherwise, or not."""
OWN_WORDS = ("`FILE:LINE: KEY`", "`found:`", "`allowed:`", "`hint:`", "`for:`")
"""Marks of a message's layout, no words of it."""


def bases(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).rpartition(".")[2] for base in node.bases]


@cache
def errors() -> frozenset[str]:
    """Every public exception class of lqray."""
    parents = {}
    for file in (ROOT / "lqray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                parents[node.name] = bases(node)
    known = {name for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, BaseException)}
    found: set[str] = set()
    while more := {name for name, of in parents.items() if set(of) & (known | found)} - found:
        found |= more
    return frozenset(name for name in found if not name.startswith("_"))


def template(node: ast.AST) -> str:
    """A string of the sources with a mark in the place of whatever differs."""
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value) for value in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return "\0"


@cache
def templates() -> tuple[str, ...]:
    found = []
    for file in (ROOT / "lqray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr | ast.BinOp) or (
                isinstance(node, ast.Constant) and isinstance(node.value, str)
            ):
                found.append(template(node))
    return tuple(found)


def is_said(message: str) -> bool:
    """Whether a string of lqray's sources has these words, with anything in the place of `...`."""
    pattern = re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)
    return any(pattern.search(text) for text in templates())


def messages() -> list[str]:
    """What the page says that lqray says: code in the first cells of its tables of messages."""
    found = []
    for table in re.findall(r"^\| message \|.*\n\|.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        for row in table.splitlines():
            found += [code for code in re.findall(r"`[^`]+`", row.split(" | ")[0]) if code not in OWN_WORDS]
    return [code.strip("`") for code in found]


def test_every_error_that_people_may_meet_is_on_the_page():
    assert len(errors()) > 45
    assert sorted(name for name in errors() - NEVER_SEEN.keys() if f"`{name}`" not in PAGE) == []


def test_the_page_names_no_error_that_there_is_not():
    named = set(re.findall(r"`(\w+Error)`", PAGE)) - {"ModuleNotFoundError"}
    assert named - errors() == set()
    assert NEVER_SEEN.keys() <= errors()


@pytest.mark.parametrize("message", messages())
def test_what_the_page_quotes_is_what_lqray_says(message):
    assert is_said(message)


def test_messages_were_read():
    assert len(messages()) > 70
    assert not is_said("no lqray has ever said this")


def test_every_kind_of_failure_is_on_the_page():
    kinds = re.findall(
        r"^\| `(\w+)` \|", PAGE.partition("\n## Trials that fail\n")[2].partition("\n## ")[0], re.MULTILINE
    )
    assert sorted(kinds) == sorted(ADVICE)
