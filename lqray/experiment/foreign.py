"""Text that somebody else wrote: any user of the store, a folder that was downloaded, the name of a run, an error.

It is shown as the characters that it is made of, and does nothing else: one function for each place where it may be
shown, and one that reads JSON. None of them raises but `json_value`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# What a terminal, a spreadsheet or a reader acts on without showing it: Unicode's controls, formats (which turn the
# direction of writing, or are invisible), separators of lines, and halves of surrogate pairs. Not newline and tab.
_UNSEEN = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000110bd\U000110cd\U00013430-\U0001343f"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_IN_LINE = re.compile(rf"[\t\n{_UNSEEN}]")
_IN_LINES = re.compile(rf"[{_UNSEEN}]")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FORMULA = re.compile(r"[=+\-@＝＋－＠]")
_IN_SENTENCE = re.compile(r"[\\|]|\](?=[\[(])")
_IN_CELL = re.compile(r"[\\|`*~]|\](?=[\[(:])|(?<!\w)_|_(?!\w)")
_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_MOST_DIGITS = 18


def in_line(text: object) -> str:
    """On a terminal, within a line: what is not to be seen is written as Python escapes it, a newline as well."""
    return _IN_LINE.sub(_written, str(text))


def in_lines(text: object) -> str:
    """On a terminal, lines: as `in_line`, but newlines and tabs stay, a return is a newline, and colours are dropped.
    For whole messages, logs and tracebacks."""
    plain = _COLOURS.sub("", str(text).replace("\r\n", "\n")).replace("\r", "\n")
    return _IN_LINES.sub(_written, plain)


def rich_text(text: object, style: str = "") -> Text:
    """`in_line` for Rich, which would take a string's [brackets] for its markup and :names: for emoji."""
    from rich.text import Text

    return Text(in_line(text), style)


def plain_console(**options: Any) -> Console:
    """A Rich console of standard output on which a string is a string: without markup and emoji, and by `in_lines`."""
    from rich.console import Console

    class PlainConsole(Console):
        def render_str(self, text: str, **given: Any) -> Text:
            return super().render_str(in_lines(text), **{**given, "markup": False, "emoji": False})

    return PlainConsole(markup=False, emoji=False, **options)


def in_markdown(text: object, sentence: bool = False) -> str:
    """In Markdown, within a line or a cell of a table: no HTML, no links or pictures, no end of the cell. sentence: of
    ours, with such text in it; its own `code` stays."""
    plain = in_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return (_IN_SENTENCE if sentence else _IN_CELL).sub(r"\\\g<0>", plain)


def in_markdown_code(text: object) -> str:
    """In Markdown, as code, with its backticks."""
    return f"`{in_line(text).replace('`', chr(39))}`"


def in_csv(text: object) -> str:
    """A cell of CSV: a spreadsheet takes none for a formula. Numbers are as they are."""
    plain = in_line(text)
    if not _FORMULA.match(plain):
        return plain
    try:
        float(plain)
    except ValueError:
        return f"'{plain}"
    return plain


def in_latex(text: object) -> str:
    """In LaTeX's text."""
    return "".join(_LATEX.get(letter, letter) for letter in in_line(text))


def in_figure(text: object) -> str:
    """A title or label of matplotlib's, which typesets what is between two $, and hides from legends what begins with
    _."""
    plain = in_line(text).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def in_file_name(text: object) -> str:
    """Part of the name of a file: no folders, nothing unseen, at most 100 characters."""
    return re.sub(r"[/\\\0]", "-", in_line(text).replace("\\", "-"))[:100]


def json_value(text: str | bytes) -> Any:
    """What JSON says. Raises ValueError for everything that cannot be read, such as lists nested by the thousand."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def whole_number(text: str, otherwise: int) -> int:
    """Of decimal digits; `otherwise` where the text is not that, or has more than 18."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else otherwise


def _written(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
