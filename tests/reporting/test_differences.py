"""What differs between runs."""

from dataclasses import replace

import pytest

from lqray.reporting.differences import differences
from lqray.store.tags import PARTS
from tests.testing.reports import record


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [("2:a", "2:b", True), ("2:a", "2:a", False), ("a", "2:a", False), ("2:a", "", False), ("2:a,2:b", "2:b", True)],
)
def test_code_of_the_parts_differs_where_that_can_be_told(one, other, told):
    runs = [replace(record("alq", 1), tags={PARTS: code} if code else {}) for code in (one, other)]
    (row,) = (row for row in differences(runs).sections["code"] if row.what == "code of its parts")
    assert row.values == (one, other or "-")
    assert row.differs is told
