"""Comparisons as pandas DataFrames, for notebooks."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pandas as pd

from lqray.reporting.differences import Differences
from lqray.reporting.machine import rows
from lqray.reporting.report import Report
from lqray.reporting.tables import notes


def report_frame(report: Report) -> pd.DataFrame:
    """A row for each group, the columns of `lqray report --format csv`. What the columns mean, and what a reader should
    know besides, is in `.attrs["notes"]`, a list of sentences."""
    keys = report.comparison.keys
    found = [
        {name: math.nan if value is None and name not in keys else value for name, value in row.items()}
        for row in rows(report.comparison)
    ]
    frame = pd.DataFrame(found)
    for key in keys:
        if key in frame:
            frame[key] = _numbers(frame[key])
    frame.attrs["notes"] = [*notes(report.comparison), *report.remarks]
    return frame


def differences_frame(found: Differences, everything: bool) -> pd.DataFrame:
    """A row for each thing in which runs differ, or for every one; by section and what it is. A column for each run, of
    its name, and where several have it of its id."""
    counts = Counter(one.name for one in found.records)
    names = [one.name if counts[one.name] == 1 else one.run_id for one in found.records]
    shown = [
        ((section, row.what), row.values)
        for section, of_section in found.sections.items()
        for row in of_section
        if everything or row.differs
    ]
    index = pd.MultiIndex.from_tuples([place for place, _ in shown], names=["section", "what"])
    return pd.DataFrame([values for _, values in shown], index=index, columns=names)


def _numbers(column: Any) -> Any:
    """Parameters are recorded as text: numbers, where all of a column are."""
    try:
        return pd.to_numeric(column)
    except ValueError:
        return column
