"""Where a submitted job's code comes from: written down where it is sent, and read where it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from lqray.experiment.foreign import json_value
from lqray.orchestration.lasting import runs_in_a_job

FILE = ".lqray-submitted.json"
"""In a job's folder."""


class OtherCodeError(ValueError):
    """A job in which another lqray runs than the one that was sent."""


@dataclass(frozen=True)
class Submitted:
    """What the sender's machine knows, and the cluster does not. code: digest of the lqray that was sent, "" where the
    cluster's own is to run. commit, dirty, changes: of that lqray in its git repository, as `lqray.git_commit`,
    `lqray.git_dirty` and git.diff. user, host, command: who submitted it, where, and how."""

    code: str = ""
    commit: str = ""
    dirty: str = ""
    changes: str = ""
    user: str = ""
    host: str = ""
    command: str = ""

    def as_json(self) -> str:
        """Equal for equal contents."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @staticmethod
    def of(found: Mapping[str, object]) -> Submitted:
        """Of what the file holds; what is not text in it, or not known, is passed over."""
        known = {one.name for one in fields(Submitted)}
        return Submitted(**{key: value for key, value in found.items() if key in known and isinstance(value, str)})


@cache
def submitted() -> Submitted | None:
    """Of the job that this process is; None for one that `lqray submit` did not make, or no job."""
    if not runs_in_a_job():
        return None
    try:
        found = json_value((Path.cwd() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Submitted.of(found) if isinstance(found, dict) else None


def check_code(here: str, place: Path) -> None:
    """Raise OtherCodeError where this job's lqray, of digest `here` in `place`, is not the one that was sent."""
    sent = submitted()
    if sent is None or not sent.code or sent.code == here:
        return
    raise OtherCodeError(
        f"this job was sent with lqray's code {sent.code}, and what runs is {here}, from {place}; allowed: the code "
        "that was sent. Does the machine's environment set PYTHONPATH or PYTHONSAFEPATH, or was the tree edited while "
        "it was sent? Then submit it again"
    )
