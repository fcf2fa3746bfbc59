"""What differs between runs."""

from dataclasses import replace

import pytest

from lqray.reporting.differences import differences
from lqray.store.tags import DATA, PARTS
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
