"""The text of an experiment file as tags of its MLflow experiment: what it said when it was last launched whole."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping

PLAN = "lqray.plan"
_PART = 4000  # MLflow's limit for a tag of an experiment is 5,000 characters


def plan_tags(launch_id: str, text: str) -> dict[str, str]:
    """Tags that hold the text; the one that says so comes last."""
    packed = base64.b85encode(zlib.compress(text.encode())).decode()
    parts = [packed[start : start + _PART] for start in range(0, len(packed), _PART)]
    tags = {f"{PLAN}.{number}": part for number, part in enumerate(parts)}
    return tags | {PLAN: json.dumps({"launch": launch_id, "parts": len(parts)})}


def published_plan(tags: Mapping[str, str]) -> tuple[str, str] | None:
    """(launch id, text) of what `plan_tags` made; None where an experiment has none."""
    plan = tags.get(PLAN)
    if plan is None:
        return None
    told = json.loads(plan)
    packed = "".join(tags[f"{PLAN}.{number}"] for number in range(told["parts"]))
    return told["launch"], zlib.decompress(base64.b85decode(packed)).decode()
