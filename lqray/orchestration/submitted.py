"""Where a submitted job's code comes from: written down where it is sent, and read where it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from lqray.experiment.foreign import json_value

FILE = ".lqray-submitted.json"
"""In a job's folder."""
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # that is its name
_PREFIX = "lqray.sent_by."
_OF_JOBS = "working_dir_files"


class OtherCodeError(ValueError):
    """A job in which another lqray runs than the one that was sent."""


@dataclass(frozen=True)
class Submitted:
    """What the sender's machine knows of the lqray that was sent, and the cluster does not. code: its digest, "" where
    the cluster's own is to run. commit, dirty, changes: of its git repository, as `lqray.git_commit`, `lqray.git_dirty`
    and git.diff. Of who sent it nothing is here: the same tree is to be the same bytes."""

    code: str = ""
    commit: str = ""
    dirty: str = ""
    changes: str = ""

    def as_json(self) -> str:
        """Equal for equal contents."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @staticmethod
    def of(found: Mapping[str, object]) -> Submitted:
        """Of what the file holds; what is not text in it, or not known, is passed over."""
        known = {one.name for one in fields(Submitted)}
        return Submitted(**{key: value for key, value in found.items() if key in known and isinstance(value, str)})


@dataclass(frozen=True)
class Sender:
    """Who submitted a job, where, and how: metadata of the job."""

    user: str = ""
    host: str = ""
    command: str = ""

    def as_metadata(self) -> dict[str, str]:
        """With lqray's prefix."""
        return {f"{_PREFIX}{key}": value for key, value in asdict(self).items()}


def runs_in_a_job() -> bool:
    """Whether this process's directory is the unpacked working tree of a Ray job."""
    return _OF_JOBS in Path.cwd().parts


@cache
def sender() -> Sender:
    """Of the job that this process is, as far as that is known."""
    try:
        found = json_value(os.environ.get(_JOB_VARIABLE, ""))["metadata"]
        known = {one.name: found[f"{_PREFIX}{one.name}"] for one in fields(Sender)}
    except (ValueError, TypeError, KeyError):
        return Sender()
    return Sender(**known) if all(isinstance(one, str) for one in known.values()) else Sender()


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
