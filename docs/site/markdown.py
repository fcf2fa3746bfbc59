"""Pieces of Markdown, made of what sources say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_SPECIAL = re.compile(r"([*_<>\[\]{}\\#|~$])")


def prose(text: str) -> str:
    """Text of a docstring, in which nothing but `code` means anything, as Markdown."""
    parts, end = [], 0
    for found in _CODE.finditer(text):
        parts += [_SPECIAL.sub(r"\\\1", text[end : found.start()]), found[0]]
        end = found.end()
    return "".join([*parts, _SPECIAL.sub(r"\\\1", text[end:])])


def one_line(text: str) -> str:
    """Prose for a cell of a table."""
    found = prose(" ".join(text.split()))
    return _CODE.sub(lambda code: code[0].replace("|", "\\|"), found)


def paragraphs(text: str) -> str:
    """A docstring's paragraphs; lines that are indented further than the first stay as they are, as code."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        indented = all(line.startswith("    ") for line in block.splitlines())
        blocks.append(f"```\n{_dedented(block)}\n```" if indented else prose(block.strip()))
    return "\n\n".join(blocks)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _dedented(block: str) -> str:
    return "\n".join(line[4:] for line in block.splitlines())
