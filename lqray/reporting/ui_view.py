"""The view of an experiment in the MLflow UI: what its page shows first, made of what its runs record.

A view is a tag of the experiment, which the UI applies when an address names it and lists among the saved ones: a name,
when it was made, and the page's state as JSON, deflated. The names in a state are those of MLflow 3.17's own code.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from lqray.reporting.comparison import Comparison
from lqray.reporting.selection import metrics_of
from lqray.reporting.targets import BYTES
from lqray.store.runs import Run
from lqray.store.tags import DIFFERENCE, GROUP

KEY = "lqray"
"""Of the view among an experiment's: it is replaced, and its address stays."""
TAG = f"mlflow.sharedViewState.{KEY}"

_NAME = "lqray: methods and their baseline"
_DEFLATED = "deflate;"
_BITS, _STEP = "wire/bits_per_coordinate", "time/seconds_per_step"
_RATIO, _NMSE = "quantizer/variance_ratio", "quantizer/nmse"
_PHASES = ("data", "forward", "backward", "encode", "exchange", "decode", "optimizer")
_LOADED = 100
"""Runs that the UI loads at once."""
_WIDTH = 140
"""Of a column, in pixels: the UI's own are too narrow for the names."""
_FIRST = "Comparison"
_METRICS = ("test", "train", "quantizer", "wire", "time", "difference")
_SECTIONS = (*_METRICS, "Model metrics", "System metrics", "varied", "axis")


def view_state(records: Sequence[Run], comparison: Comparison) -> dict[str, Any]:
    """The order of runs, their columns, their groups (seeds are averaged), and charts. records: one a trial.
    comparison: of them."""
    headline, known = comparison.headline, metrics_of(records)
    metrics = [_BITS, BYTES, headline.metric, *([DIFFERENCE] if comparison.baseline else [])]
    columns = [*(f"params.`{key}`" for key in comparison.keys), *(f"metrics.`{one}`" for one in metrics)]
    columns += ["attributes.`Source`", "attributes.`Version`"]
    # Of more runs than are loaded at once those that send most come first, among them what others are compared with.
    order, ascending = (headline.metric, not headline.higher) if len(records) <= _LOADED else (_BITS, False)
    return {
        "searchFilter": "",
        "orderByKey": f"metrics.`{order}`",
        "orderByAsc": ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": dict.fromkeys(columns, _WIDTH),
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": GROUP}]},
        "groupsExpanded": {f"tag.{GROUP}.{group_name(one.keys)}": False for one in comparison.groups},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunCharts": _charts(known, comparison),
        "compareRunSections": _sections(known),
    }


def group_name(keys: Mapping[str, str | None]) -> str:
    """Of runs that differ in nothing but the seed: the method, then its other settings, as charts have room for."""
    method, *others = keys.items()
    given = [(key, value) for key, value in others if value not in (None, "null")]
    settings = [f"{key.rpartition('.')[2]} {str(value).removesuffix('.0')}" for key, value in given]
    return ", ".join([str(method[1]), *settings])


def envelope(state: Mapping[str, Any], made: float | None = None) -> str:
    """The tag's value. made: seconds since the epoch, by default now."""
    at = round(1000 * (time.time() if made is None else made))
    packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)).decode()
    return json.dumps({"name": _NAME, "createdAt": at, "updatedAt": at, "state": _DEFLATED + packed})


def state_of(value: str) -> dict[str, Any] | None:
    """The state in a tag's value; None where it is not one that `envelope` made."""
    try:
        packed = json.loads(value)["state"]
        state = json.loads(zlib.decompress(base64.b64decode(packed.removeprefix(_DEFLATED))))
    except (ValueError, TypeError, KeyError, AttributeError, zlib.error):
        return None
    return state if isinstance(state, dict) else None


def _charts(known: set[str], comparison: Comparison) -> list[dict[str, Any]]:
    """Of those whose metrics some run has."""
    headline = comparison.headline
    metric, scale = headline.metric, "linear" if headline.higher else "log"
    charts = [_line(metric, scale), _line(metric, scale, by=BYTES), _scatter(BYTES, metric)]
    if comparison.baseline:
        charts.append(_bars([DIFFERENCE]))
    charts.append(_line(_RATIO if _RATIO in known else _NMSE, "log"))
    phases = [key for phase in _PHASES if (key := f"time/{phase}_seconds") in known]
    charts.append(_bars(phases or [_STEP]))
    return [{"uuid": f"lqray-{number}", **chart} for number, chart in enumerate(charts)]


def _line(metric: str, scale: str, by: str | None = None) -> dict[str, Any]:
    """scale: linear or log, of the metric. by: another metric instead of steps."""
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "metric" if by else "step",
        "selectedXAxisMetricKey": by or "",
        "xAxisScaleType": "linear",
        "scaleType": scale,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
        "lineSmoothness": 0,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
        **_SHOWN,
    }


def _bars(metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "BAR",
        "metricKey": metrics[0],
        "selectedMetricKeys": [*metrics],
        "dataAccessKey": metrics[0],
        **_SHOWN,
    }


def _scatter(x: str, y: str) -> dict[str, Any]:
    axes = {name: {"key": key, "type": "METRIC"} for name, key in (("xaxis", x), ("yaxis", y))}
    return {"type": "SCATTER", **axes, **_SHOWN}


def _sections(known: set[str]) -> list[dict[str, Any]]:
    """Of charts: the view's own, open, and those of all metrics, which the UI adds, folded."""
    names = {*_SECTIONS, *(key.rpartition("/")[0] for key in known if "/" in key and not key.startswith("system/"))}
    rank = {name: number for number, name in enumerate(_SECTIONS)}
    ordered = sorted(names, key=lambda name: (rank.get(name.partition("/")[0], len(rank)), name))
    return [
        {"uuid": _section(name), "name": name, "display": name == _FIRST, "isReordered": True, "deleted": False}
        for name in (_FIRST, *ordered)
    ]


def _section(name: str) -> str:
    return f"lqray-{name}"


_SHOWN = {"metricSectionId": _section(_FIRST), "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
