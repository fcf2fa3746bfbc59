"""Tables on a terminal: what does not fit its width is left out, and said, or stacked; a number is never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lqray.experiment.foreign import in_line, rich_text
from lqray.reporting.comparison import Comparison, Group
from lqray.reporting.tables import ESSENTIAL, Column, columns_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


_ANY = 10_000
"""Characters, more than any line has."""


@dataclass(frozen=True)
class Fitted:
    """How columns are shown within a width. columns: beside each other, each of its number of characters in `widths`.
    constant: (title, value) of keys that are the same in every row, and are said once. left_out: what is not shown.
    stacked: whether there is no room for columns, and each row is a block of lines, with nothing left out."""

    columns: tuple[Column, ...]
    widths: tuple[int, ...] = ()
    constant: tuple[tuple[str, str], ...] = ()
    left_out: tuple[Column, ...] = ()
    stacked: bool = False


def fitted(columns: Sequence[Column], groups: Sequence[Group], width: int | None) -> Fitted:
    """How a table of `columns` with a row for each of `groups` is shown in `width` characters; None for any width.

    In this order, as far as it is needed: titles are broken between words; keys of one value are said once; columns of
    least priority are left out; rows are stacked.
    """
    sizes = {id(one): _size(one, groups) for one in columns}
    whole = tuple(columns)

    def least(shown: Sequence[Column]) -> int:
        return _frame(len(shown)) + sum(sizes[id(one)][0] for one in shown)

    if width is None:
        return Fitted(whole, tuple(sizes[id(one)][1] for one in whole))
    if least(whole) <= width:
        return Fitted(whole, _widths([sizes[id(one)] for one in whole], width))
    constant = [one for one in whole if one.key and len({one.cell(group) for group in groups}) == 1]
    shown = [one for one in whole if one not in constant]
    left_out: list[Column] = []
    while least(shown) > width and any(one.priority < ESSENTIAL for one in shown):
        lowest = min(reversed(shown), key=lambda one: one.priority)
        shown.remove(lowest)
        left_out.append(lowest)
    if not shown or least(shown) > width:
        return Fitted(whole, stacked=True)
    for one in sorted(left_out, key=lambda column: -column.priority):  # a wide one left room for lesser ones
        again = [each for each in whole if each in shown or each is one]
        if least(again) <= width:
            shown = again
            left_out.remove(one)
    return Fitted(
        tuple(shown),
        _widths([sizes[id(one)] for one in shown], width),
        tuple((one.title, one.cell(groups[0])) for one in constant),
        tuple(one for one in whole if one in left_out),
    )


def show_table(console: Console, comparison: Comparison, columns: Sequence[Column] = (), advice: str = "") -> None:
    """Print a comparison, a row for each group. columns: all of `columns_of` without any. What is not a terminal has
    room for all of them. advice: how to see what is left out."""
    columns = columns or columns_of(comparison)
    # Rich takes COLUMNS for the width where it is set, and knows whether there is a terminal.
    found = fitted(columns, comparison.groups, console.width if console.is_terminal else None)
    if found.stacked:
        for group in comparison.groups:
            for column in columns:
                console.print(rich_text(f"{column.title}: {column.cell(group)}"), style=_style(group), highlight=False)
            console.print()
        return
    print_whole(console, _table(found, comparison.groups))
    if found.constant:
        _say(console, "In every row: " + ", ".join(f"{title} {value}" for title, value in found.constant) + ".")
    if found.left_out:
        words = ", ".join(dict.fromkeys(one.word for one in found.left_out))
        _say(console, f"Left out, for {console.width} characters: {words}.{advice and ' '}{advice}")


def print_whole(console: Console, table: Table) -> None:
    """With as many characters a line as it takes, where a terminal has fewer: a number that goes on in its next line
    can be read, one that is cut off cannot."""
    before = console.width
    console.width = max(before, table.__rich_measure__(console, console.options.update(max_width=_ANY)).maximum)
    console.print(table)
    console.width = before


def _table(found: Fitted, groups: Sequence[Group]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1))
    for column, width in zip(found.columns, found.widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        table.add_column(rich_text(column.title), justify=justify, vertical="bottom", width=width, overflow="fold")
    for group in groups:
        table.add_row(*(rich_text(column.cell(group)) for column in found.columns), style=_style(group))
    return table


def _say(console: Console, line: str) -> None:
    console.print(rich_text(line), style="dim", highlight=False)


def _style(group: Group) -> str | None:
    if group.states.get("failed"):
        return "red"
    return None if set(group.states) == {"finished"} and not group.not_finite else "yellow"


def _frame(count: int) -> int:
    """What so many columns take beside their text: a space to each side, and one between them and at the ends."""
    return 3 * count + 1


def _size(column: Column, groups: Sequence[Group]) -> tuple[int, int]:
    """(the least width, that of all in one line)."""
    cells = [in_line(column.cell(group)) for group in groups]
    words = [word for text in cells for word in (text.split() if column.wraps else [text])]
    title = in_line(column.title)
    return _longest([*title.split(), *words]), _longest([title, *cells])


def _longest(texts: Sequence[str]) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, texts), default=1)


def _widths(sizes: Sequence[tuple[int, int]], width: int) -> tuple[int, ...]:
    """Of columns that fit at their least widths: what is left goes to that whose text is the farthest from one line."""
    widths = [least for least, _ in sizes]
    for _ in range(width - _frame(len(sizes)) - sum(widths)):
        lines = [whole / now for (_, whole), now in zip(sizes, widths, strict=True)]
        most = lines.index(max(lines))
        if lines[most] <= 1:
            break
        widths[most] += 1
    return tuple(widths)
