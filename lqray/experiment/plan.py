"""The text of an experiment file as tags of its MLflow experiment: what it said when it was last launched whole.

Launches may publish at the same moment, and tags are written one by one. A text of usual size is hence in one tag; the
parts of a longer one are called by its digest, so that those of two texts never mix, and the tag that names them comes
last.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from lqray.experiment.foreign import in_line, json_value

PLAN = "mlflow.lqray.plan"
"""The UI shows no tags that begin with mlflow."""
EARLIER_PLAN = "lqray.plan"
"""What earlier versions call it."""
MOST_BYTES = 4 << 20
"""Of a text, in UTF-8: whoever writes tags could have a megabyte of them inflated to a gigabyte by everybody."""
MOST_TRIALS = 1_000_000
"""Of a published file that somebody else expands: a few characters can stand for more trials than there are atoms."""
_PART = 4000  # MLflow's limit for a tag of an experiment is 5,000 characters
_MOST_PARTS = 2 * MOST_BYTES // _PART
_log = logging.getLogger(__name__)


class PublishedPlan(NamedTuple):
    """What a launch published. file: where it read the text, HOST:PATH; "" where that was not said."""

    launch: str
    text: str
    file: str = ""


def plan_tags(launch_id: str, text: str, file: str = "") -> dict[str, str]:
    """Tags that hold the text; the one that says so comes last. None, with a warning, of more than MOST_BYTES.

    file: see `PublishedPlan`.
    """
    content = text.encode()
    if len(content) > MOST_BYTES:
        _log.warning(
            "the experiment file has %d bytes, and is not kept with its MLflow experiment: allowed are %d. Reports by "
            "the experiment's name do not know of it; `lqray report FILE` does",
            len(content),
            MOST_BYTES,
        )
        return {}
    packed = base64.b85encode(zlib.compress(content)).decode()
    digest = _digest(text)
    head = {"launch": launch_id, "file": file[-400:], "digest": digest}
    if len(packed) <= _PART:
        return {PLAN: json.dumps({**head, "text": packed})}
    parts = [packed[start : start + _PART] for start in range(0, len(packed), _PART)]
    tags = {f"{PLAN}.{digest}.{number}": part for number, part in enumerate(parts)}
    return tags | {PLAN: json.dumps({**head, "parts": len(parts)})}


def published_plan(tags: Mapping[str, str]) -> PublishedPlan | None:
    """What `plan_tags` made, also in its earlier form; None where an experiment has none, and, with a warning, where
    its tags are damaged."""
    key = next((one for one in (PLAN, EARLIER_PLAN) if one in tags), None)
    if key is None:
        return None
    plan = tags[key]
    try:
        told = json_value(plan)
        text = _inflated(base64.b85decode(_packed(key, told, tags))).decode()
        if told.get("digest", _digest(text)) != _digest(text):
            raise ValueError("its digest is not that of its text")
        return PublishedPlan(str(told["launch"]), text, str(told.get("file", "")))
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        _log.warning(
            "the tags %s* of the MLflow experiment, which hold its file as it was launched last, are damaged (%s: %s) "
            "and are passed over; the next `lqray run FILE` writes them again",
            key,
            type(error).__name__,
            in_line(error)[:200],
        )
        return None


def _packed(key: str, told: Mapping[str, object], tags: Mapping[str, str]) -> str:
    if "text" in told:
        return str(told["text"])
    # Before there were digests, parts had numbers only.
    prefix = f"{key}.{told['digest']}" if "digest" in told else key
    parts = int(str(told["parts"]))
    if parts > _MOST_PARTS:
        raise ValueError(f"it has {parts} parts; allowed: {_MOST_PARTS}")
    return "".join(tags[f"{prefix}.{number}"] for number in range(parts))


def _inflated(packed: bytes) -> bytes:
    """At most MOST_BYTES, whatever would come of it. Raises ValueError, zlib.error."""
    inflating = zlib.decompressobj()
    content = inflating.decompress(packed, MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it inflates to more than {MOST_BYTES} bytes")
    if not inflating.eof:
        raise ValueError("its end is missing")
    return content


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
