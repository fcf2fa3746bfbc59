"""`record.json` of an exported folder: what was claimed, of what runs it is made, where and by which command, and what
came out, so that whoever has the folder can make its tables again and see that they are these."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from lqray.experiment.foreign import json_value
from lqray.reporting.comparison import Comparison
from lqray.reporting.machine import rows
from lqray.reporting.report import ReportOptions
from lqray.reporting.selection import SEED, natural
from lqray.store.runs import Run
from lqray.store.tags import CODE, COMMAND, GIT_COMMIT, GIT_DIRTY, HOST, MACHINE, MLFLOW, PYTHON, RAY, TORCH, VERSION

RECORD = "record.json"
_CODE = {"version": VERSION, "commit": GIT_COMMIT, "uncommitted_changes": GIT_DIRTY, "code": CODE}
_MACHINE = {"host": HOST, "machine": MACHINE, "python": PYTHON, "torch": TORCH, "ray": RAY, "mlflow": MLFLOW}
_LEFT_OUT = ("links", "workers")


@dataclass(frozen=True)
class Claim:
    """hypothesis: in the words of whoever exports, or the comment that the experiment's file begins with; "" where
    there is neither. options: of the report that shows what came out. raw, kept: of `lqray export --raw` and
    `--keep`."""

    hypothesis: str
    options: ReportOptions
    raw: str = "parquet"
    kept: Sequence[str] = ()


def record_of(claim: Claim, experiment: str, records: Sequence[Run], comparison: Comparison) -> dict[str, Any]:
    """A document for JSON: no number of it is NaN or infinite, those are text. Times are in UTC, of the runs."""
    runs = [one for one in records if one.run_id]
    begun = [one.started for one in runs if one.started]
    seeds = sorted({one.params[SEED] for one in runs if SEED in one.params}, key=natural)
    options = {**asdict(claim.options), "metrics": list(comparison.metrics), "baseline": comparison.baseline}
    return {
        "experiment": experiment,
        "hypothesis": claim.hypothesis,
        "date": _time(min(begun))[:10] if begun else None,
        "first_run_began": _time(min(begun)) if begun else None,
        "last_run_began": _time(max(begun)) if begun else None,
        "commands": sorted({one.tags[COMMAND] for one in runs if COMMAND in one.tags}),
        "code": _counted(runs, _CODE),
        "machines": _counted(runs, _MACHINE),
        "seeds": seeds,
        "states": dict(sorted(Counter(one.state for one in records).items())),
        "export": {"raw": claim.raw, "keep": list(claim.kept)},
        "report": {key: value for key, value in options.items() if key not in _LEFT_OUT},
        "result": [{key: _plain(value) for key, value in row.items() if key != "run_ids"} for row in rows(comparison)],
    }


def recorded_options(text: str) -> ReportOptions:
    """Options of the report whose numbers a `record.json` holds. Raises ValueError for what is no such document."""
    found = json_value(text)
    if not isinstance(found, dict) or not isinstance(found.get("report"), dict):
        raise ValueError("no record of lqray: it has no report")
    known = {one.name for one in fields(ReportOptions)}
    return ReportOptions(**{key: value for key, value in found["report"].items() if key in known})


def _counted(runs: Sequence[Run], tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """What runs recorded under tags, and how many of them; what they did not record is not there."""
    found = Counter(tuple((name, one.tags[tag]) for name, tag in tags.items() if tag in one.tags) for one in runs)
    return [{**dict(values), "runs": count} for values, count in sorted(found.items())]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
