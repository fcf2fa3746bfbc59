"""`lqray run` as a job on a cluster: submitted once, followed through lost connections, left running by Ctrl-C."""

from __future__ import annotations

import hashlib
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lqray.orchestration.provenance import this_sender
from lqray.orchestration.remote.following import Following, Outcome
from lqray.orchestration.remote.job_server import Sent, SubmissionError, connect, of_versions, reached
from lqray.orchestration.remote.package import Package, pack
from lqray.store.tags import CODE

# Seconds between `ray job stop`'s SIGTERM and SIGKILL: for a sweep to record what it interrupts. Ray's own 3 are few.
_STOP_SECONDS = "30"


@dataclass(frozen=True)
class Sweep:
    """What is submitted: experiment files with their names, and options of `lqray run`.

    `base` is made of both, and of nothing else: the same sweep, submitted again, is the same job. beside: see `pack`.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    options: tuple[str, ...] = ()
    beside: tuple[Mapping[str, Path], ...] = ()

    @property
    def base(self) -> str:
        """Submission id of the first attempt; of later ones with -2, -3, ... behind it."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.read_bytes() + b"\0")
        digest.update("\0".join(self.options).encode())
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(self.names))[:60]
        return f"{name}-{digest.hexdigest()[:10]}"

    def entrypoint(self, files: Sequence[str]) -> str:
        """The job's command; files: of the experiments, in the packed tree."""
        # A name that begins with a dash would be an option.
        named = [f"./{file}" if file.startswith("-") else file for file in files]
        return shlex.join(["python", "-m", "lqray", "run", *named, *self.options])


@dataclass(frozen=True)
class Job:
    """A job on the cluster. package: what was sent; None where the job was running already. code: digest of the lqray
    that was sent for it, "" where the cluster's own runs; None where that is not known."""

    submission_id: str
    package: Package | None
    code: str | None


@dataclass(frozen=True)
class Shipment:
    """What a submission would send, and the job's command."""

    package: Package
    entrypoint: str


def shipment(sweep: Sweep) -> Shipment:
    """What `Cluster.submit` would send; nothing is. Raises PackageError."""
    with tempfile.TemporaryDirectory(prefix="lqray-") as folder:
        package = pack(sweep.files, Path(folder) / "tree.zip", beside=sweep.beside)
    return Shipment(package, sweep.entrypoint(package.experiments))


class Cluster:
    """A cluster's job server. find: its URL, asked again after a broken connection. say: told of such breaks. sent:
    told how an upload gets on. Raises SubmissionError where no server answers."""

    def __init__(self, find: Callable[[], str], say: Callable[[str], None], sent: Sent | None = None) -> None:
        self._find, self._say, self._sent = find, say, sent
        self.address = ""
        self._client = self._reached(self._connect)
        if remark := of_versions(self._client):
            say(remark)

    def submit(self, sweep: Sweep) -> Job:
        """Submit the sweep, or find the job that runs it already. Raises SubmissionError, PackageError."""
        attempts = self._attempts(sweep.base)
        for submission_id, running, code in attempts.values():
            if running:
                return Job(submission_id, None, code)
        number = max(attempts, default=0) + 1
        submission_id = sweep.base if number == 1 else f"{sweep.base}-{number}"
        with tempfile.TemporaryDirectory(prefix="lqray-") as folder:
            package = pack(sweep.files, Path(folder) / "tree.zip", beside=sweep.beside)
            sent = package.submitted.code
            try:
                self._reached(
                    lambda: self._client.submit_job(
                        entrypoint=sweep.entrypoint(package.experiments),
                        submission_id=submission_id,
                        runtime_env={
                            "working_dir": str(package.path),
                            # Nothing else of this environment: everyone who sees the dashboard sees a job's.
                            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": _STOP_SECONDS},
                        },
                        metadata={
                            "lqray.experiment": ", ".join(sweep.names),
                            CODE: sent,
                            **this_sender().as_metadata(),
                        },
                    )
                )
            except SubmissionError:
                # Somebody was faster, or the answer was lost and not the request.
                _, running, code = self._attempts(sweep.base).get(number, ("", False, None))
                if running:
                    return Job(submission_id, None, code)
                raise
        return Job(submission_id, package, sent)

    def outcome(self, submission_id: str, show: Callable[[str], None] | None) -> Outcome:
        """See `Following.outcome`."""
        following = Following(submission_id, self._again, self._say, show)
        return following.outcome(self._client, self.address)

    def _attempts(self, base: str) -> dict[int, tuple[str, bool, str | None]]:
        """By number: (submission id, whether it still runs, digest of the code that was sent for it)."""
        found = {}
        for job in self._reached(lambda: self._client.list_jobs()):
            attempt = re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", job.submission_id or "")
            if attempt:
                running, code = not job.status.is_terminal(), (job.metadata or {}).get(CODE)
                found[int(attempt.group(1) or 1)] = (job.submission_id, running, code)
        return found

    def _connect(self) -> Any:
        self.address = self._find()
        return connect(self._find, self._say, self._sent)

    def _again(self) -> tuple[Any, str]:
        self._client = self._connect()
        return self._client, self.address

    def _reached(self, call: Callable[[], Any]) -> Any:
        return reached(lambda: self.address, call)
