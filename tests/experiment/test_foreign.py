"""Text that others wrote does nothing where it is shown."""

import csv
import io
import sys
import unicodedata

import pytest
from rich.table import Table

from lqray.experiment import foreign

EVERYTHING = "".join(map(chr, range(sys.maxunicode + 1)))
UNSEEN = {letter for letter in EVERYTHING if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
HOSTILE = [
    "\x1b[2J\x1b]0;title\x07\x1b]8;;http://evil\x1b\\link",
    "[/x] [bold]b[/] [old] :smile:",
    "\u202egnp.exe",
    "a\nb\rc\x85d\u2028e",
    r"\input{/etc/passwd} % $x^2$ #1 & ~_{}",
    "| <script>alert(1)</script> [a](javascript:b) ![i](http://x) `c",
    "=cmd|'/C calc'!A0",
    "\ud800",
]


def test_nothing_unseen_is_left():
    unseen = "".join(sorted(UNSEEN))
    assert UNSEEN.intersection(foreign.in_lines(unseen)) == {"\n", "\t"}
    for function in (foreign.in_line, foreign.in_markdown, foreign.in_csv, foreign.in_latex, foreign.in_figure):
        assert UNSEEN.isdisjoint(function(unseen)), function
    assert UNSEEN.isdisjoint(foreign.in_file_name(unseen))


def test_what_is_seen_stays():
    for text in ("alq-seed1", "test/accuracy", "µ ± 3 %", "日本語 é", "[/x] [old] :smile:", "quantizer.bits=3"):
        assert foreign.in_line(text) == foreign.in_lines(text) == text
    assert foreign.in_line("a\tb\x1b[2J\u202e") == r"a\tb\x1b[2J\u202e"
    assert foreign.in_lines("1%\r100%\r\n\x1b[31mred\x1b[0m\tend") == "1%\n100%\nred\tend"
    assert foreign.in_markdown("full_precision 98% [96.7, 100.2]") == "full_precision 98% [96.7, 100.2]"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_shows_all_of_it_and_obeys_nothing(text):
    stream = io.StringIO()
    console = foreign.plain_console(file=stream, width=300, force_terminal=True, color_system=None)
    console.print(text)
    table = Table()
    table.add_column(text)
    table.add_row(text)
    table.add_row(foreign.rich_text(text))
    console.print(table)
    assert "\x1b" not in stream.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert UNSEEN.intersection(stream.getvalue()) == {"\n"}
    assert stream.getvalue().count(foreign.in_lines(text).split("\n")[0]) == 4
    assert foreign.in_line(text) in stream.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_has_one_cell_of_text(text):
    shown = foreign.in_markdown(text)
    for active in ("\n", "<", "](", "&l" if "<" not in text else "\0"):
        assert active not in shown.replace(r"\](", "")
    assert shown.replace(r"\\", "").replace(r"\|", "").count("|") == 0
    assert foreign.in_markdown_code(text).count("`") == 2


def test_spreadsheets_see_no_formula():
    for text in ("=1+1", "+1+1", "-2+3", "@SUM(A1)", "=cmd|'/C calc'!A0", "＝1", "\t=1", "\r=1", "\n=1"):
        stream = io.StringIO()
        csv.writer(stream).writerow([foreign.in_csv(text)])
        (cell,) = next(csv.reader(io.StringIO(stream.getvalue())))
        assert cell[0] in "'\\"
    for number in ("-0.5", "+3", "1e-3", "-inf", "nan", ""):
        assert foreign.in_csv(number) == number


def test_latex_commands_are_text():
    assert foreign.in_latex("a\n\\input{x}") == r"a\textbackslash{}n\textbackslash{}input\{x\}"


def test_json_of_any_kind_is_read_or_refused():
    assert foreign.json_value('{"a": [1]}') == {"a": [1]}
    for text in ("{not json", "[" * 100_000, "1" * 100_000, "", b"\xff"):
        with pytest.raises(ValueError, match=r"nested|digits|Expecting|decode"):
            foreign.json_value(text)
    assert foreign.whole_number("12", 1) == 12
    for text in ("", "-1", "1.5", "x", "9" * 5000, "²"):
        assert foreign.whole_number(text, 7) == 7
