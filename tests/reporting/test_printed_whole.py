"""Tables that are wider than the terminal."""

import io

from rich.console import Console
from rich.table import Table

from lqray.reporting.fitting import print_whole


def test_no_number_is_cut_where_the_terminal_is_narrow():
    stream = io.StringIO()
    console = Console(file=stream, width=20, force_terminal=True, color_system=None)
    table = Table("method", "seconds a step over a link")
    table.add_row("full_precision", "123.456789 ms")
    print_whole(console, table)
    text = stream.getvalue()
    assert "…" not in text
    assert "123.456789 ms" in text
    assert "seconds a step over a link" in text
    assert console.width == 20
