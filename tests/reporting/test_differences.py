"""What differs between runs."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from lqray.reporting.differences import differences, shown
from lqray.store.tags import DATA, MACHINE, PARTS
from tests.testing.reports import record


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [("2:a", "2:b", True), ("2:a", "2:a", False), ("a", "2:a", False), ("2:a", "", False), ("2:a,2:b", "2:b", True)],
)
@pytest.mark.parametrize(("tag", "what"), [(PARTS, "code of its parts"), (DATA, "files of its data")])
def test_digests_differ_where_that_can_be_told(tag, what, one, other, told):
    runs = [replace(record("alq", 1), tags={tag: digest} if digest else {}) for digest in (one, other)]
    (row,) = (row for row in differences(runs).sections["code"] if row.what == what)
    assert row.values == (one, other or "-")
    assert row.differs is told


@pytest.mark.parametrize("width", [80, 200])
def test_no_number_is_cut_where_runs_do_not_fit_beside_each_other(width):
    runs = [
        replace(
            record("alq", seed),
            run_id=f"{seed:032x}",
            trial_id=f"{seed:016x}",
            name=f"alq-{seed}",
            metrics={"test/accuracy": 0.81234 + seed / 1e5},
        )
        for seed in range(1, 7)
    ]
    stream = io.StringIO()
    console = Console(width=width, file=stream)
    console.print(shown(differences(runs), True, width), highlight=False)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for one in runs:
        assert re.search(rf"\b{one.run_id}\b", text)
        assert re.search(rf"(?<![\d.]){one.metrics['test/accuracy']:.6g}(?![\d.])", text)


def test_machines_stand_with_the_code():
    runs = [replace(record("alq", 1), tags={MACHINE: cpu}) for cpu in ("AMD EPYC, 2 cores", "arm, 8 cores")]
    (row,) = (row for row in differences(runs).sections["code"] if row.what == "machine")
    assert row.differs
