"""`lqray run` as a job on a cluster: submitted once, followed through lost connections, left running by Ctrl-C."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lqray.experiment.secrets import masked
from lqray.orchestration.cluster import ClusterError
from lqray.orchestration.package import LIMIT, pack
from lqray.orchestration.ray_access import offer_token

_FIRST_DELAY, _LAST_DELAY = 1.0, 15.0
PATIENCE = 600.0
_WITHOUT_LOG = 60.0
"""Seconds without the job server after which following gives up; the job does not."""
_QUIET_SECONDS, _QUIET_TIMES = 10.0, 6
_REQUEST_SECONDS = 60.0
# Seconds between `ray job stop`'s SIGTERM and SIGKILL: for a sweep to record what it interrupts. Ray's own 3 are few.
_STOP_SECONDS = "30"

Outcome = Literal["SUCCEEDED", "FAILED", "STOPPED"]


def job_server(address: str | None) -> str:
    """URL of a cluster's job server: `address`, or what Ray's own commands would ask, or the usual port here."""
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    if not address and not found.startswith(("http://", "https://")):
        found = "http://127.0.0.1:8265"
    return (found if "://" in found else f"http://{found}").rstrip("/")


class SubmissionError(ConnectionError):
    """The cluster takes no job, or cannot be asked how it stands."""


@dataclass(frozen=True)
class Sweep:
    """What is submitted: experiment files with their names, and options of `lqray run`.

    `base` is made of both, and of nothing else: the same sweep, submitted again, is the same job.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    options: tuple[str, ...] = ()

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
        return shlex.join(["python", "-m", "lqray", "run", *files, *self.options])


@dataclass(frozen=True)
class Job:
    """A job on the cluster. attached: it was running already. files, size: what was sent, in bytes. left_out: files
    that by their names hold secrets."""

    submission_id: str
    attached: bool
    files: int = 0
    size: int = 0
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shipment:
    """What a submission would send: the names of files, the bytes of all, packed, the job's command, and what is left
    out."""

    names: tuple[str, ...]
    size: int
    entrypoint: str
    left_out: tuple[str, ...]


def shipment(sweep: Sweep, limit: int = LIMIT) -> Shipment:
    """What `Cluster.submit` would send; nothing is. Raises PackageError."""
    with tempfile.TemporaryDirectory(prefix="lqray-") as folder:
        package = pack(sweep.files, Path(folder) / "tree.zip", limit=limit)
    return Shipment(package.names, package.size, sweep.entrypoint(package.experiments), package.left_out)


class Cluster:
    """A cluster's job server. find: its URL, asked again after a broken connection. say: told of such breaks."""

    def __init__(self, find: Callable[[], str], say: Callable[[str], None]) -> None:
        self._find, self._say = find, say
        self.address = self._told = ""
        self._client = self._reached(self._connect)

    def submit(self, sweep: Sweep, limit: int = LIMIT) -> Job:
        """Submit the sweep, or find the job that runs it already. Raises SubmissionError, PackageError."""
        attempts = self._attempts(sweep.base)
        for submission_id, running in attempts.values():
            if running:
                return Job(submission_id, attached=True)
        number = max(attempts, default=0) + 1
        submission_id = sweep.base if number == 1 else f"{sweep.base}-{number}"
        with tempfile.TemporaryDirectory(prefix="lqray-") as folder:
            package = pack(sweep.files, Path(folder) / "tree.zip", limit=limit)
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
                        metadata={"lqray.experiment": ", ".join(sweep.names)},
                    )
                )
            except SubmissionError:
                # Somebody was faster, or the answer was lost and not the request.
                if self._attempts(sweep.base).get(number, ("", False))[1]:
                    return Job(submission_id, attached=True)
                raise
        return Job(submission_id, False, package.files, package.size, package.left_out)

    def outcome(self, submission_id: str, show: Callable[[str], None] | None) -> Outcome:
        """How the job ended, as soon as it has. show: given its log, in pieces, each once.

        A broken connection is made again, with back-off, and the log goes on where it was. Raises SubmissionError when
        that fails for PATIENCE seconds, or the job is not known any more.
        """
        log = _Log(show)
        delay, lost, again = _FIRST_DELAY, 0.0, False
        while True:
            begun = time.monotonic()
            try:
                if lost:
                    self._client = self._connect()
                    ended = self._ended(submission_id)
                    if ended and time.monotonic() - lost > _WITHOUT_LOG:  # its log cannot be had, its end can
                        return ended
                    if not again:
                        self._say(f"connected to {self.address} again")
                    again = True
                if show:
                    asyncio.run(log.follow(self._client, submission_id))
                ended = self._ended(submission_id)
                delay, lost, again = _FIRST_DELAY, 0.0, False
                if ended:
                    return ended
                time.sleep(_FIRST_DELAY)
            except BrokenPipeError:  # of our own output
                raise
            except Exception as error:
                if not _may_pass(error):
                    raise SubmissionError(self._why(error)) from error
                if time.monotonic() - begun > _WITHOUT_LOG:  # the log came for a while: this is another loss
                    delay, lost, again = _FIRST_DELAY, 0.0, False
                if not lost:
                    self._say(f"lost the connection to {self.address} ({_first_line(error)}); trying again")
                lost = lost or time.monotonic()
                if time.monotonic() - lost > PATIENCE:
                    raise SubmissionError(
                        f"{self.address} did not answer for {PATIENCE:g} s; the job goes on if its cluster does"
                    ) from error
                time.sleep(delay)
                delay = min(2 * delay, _LAST_DELAY)

    def _attempts(self, base: str) -> dict[int, tuple[str, bool]]:
        """By number: (submission id, whether it still runs)."""
        found = {}
        for job in self._reached(self._client.list_jobs):
            attempt = re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", job.submission_id or "")
            if attempt:
                found[int(attempt.group(1) or 1)] = (job.submission_id, not job.status.is_terminal())
        return found

    def _ended(self, submission_id: str) -> Outcome | None:
        status = self._client.get_job_status(submission_id)
        ended: Outcome | None = status.value if status.is_terminal() else None
        if ended == "FAILED":
            why = self._client.get_job_info(submission_id).message
            if why and why != self._told:
                self._told = why
                self._say(masked(why))
        return ended

    def _connect(self) -> Any:
        self.address = self._find()
        offer_token()
        # It has the last word on the address, and so has RAY_ADDRESS, which is where trials run, without it.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        from ray.job_submission import JobSubmissionClient

        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)

        class Client(JobSubmissionClient):  # type: ignore[misc]
            """Whose requests end: Ray's wait for ever for a server that has gone without a word."""

            def _do_request(self, *arguments: Any, **options: Any) -> Any:
                return super()._do_request(*arguments, **{"timeout": _REQUEST_SECONDS, **options})

        return Client(self.address)

    def _reached(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            if isinstance(error, ClusterError) or not _of_the_server(error):
                raise
            raise SubmissionError(self._why(error)) from error

    def _why(self, error: Exception) -> str:
        from ray.exceptions import AuthenticationError

        if isinstance(error, AuthenticationError):
            return (
                f"{self.address} does not let you in: {_first_line(error)}\n"
                f"Found RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', '(unset)')}; the cluster wants its own token in "
                "RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token."
            )
        if isinstance(error, RuntimeError):
            return f"{self.address} refuses: {error}"
        return (
            f"no job server answers at {self.address or 'that address'} ({_first_line(error)}). Give --address "
            "http://HOST:8265 of the cluster's dashboard, or --cluster cluster.yaml, which makes an SSH tunnel to it."
        )


class _Log:
    """A job's log, each character shown once however often it is read from its beginning."""

    def __init__(self, show: Callable[[str], None] | None) -> None:
        self._show = show or (lambda text: None)
        self._shown = 0

    async def follow(self, client: Any, submission_id: str) -> None:
        """Show what is new until the log ends, or nothing was heard of it for a minute. Raises what the connection
        raises."""
        place = 0
        pieces = client.tail_job_logs(submission_id)
        waiting: asyncio.Future[str] = asyncio.ensure_future(anext(pieces))
        quiet = 0
        try:
            while True:
                done, _ = await asyncio.wait([waiting], timeout=_QUIET_SECONDS)
                if not done:
                    # A connection can be gone without a word: ask whether the server is there.
                    status = await asyncio.to_thread(client.get_job_status, submission_id)
                    if status.is_terminal():
                        raise ConnectionError("its log stands still")
                    quiet += 1
                    if quiet == _QUIET_TIMES:
                        return
                    continue
                quiet = 0
                try:
                    text = waiting.result()
                except StopAsyncIteration:
                    return
                new = text[max(0, self._shown - place) :]
                place += len(text)
                self._shown = max(self._shown, place)
                if new:
                    self._show(new)
                waiting = asyncio.ensure_future(anext(pieces))
        finally:
            waiting.cancel()


def _of_the_server(error: Exception) -> bool:
    from ray.exceptions import AuthenticationError

    return isinstance(error, RuntimeError | AuthenticationError) or _may_pass(error)


def _may_pass(error: Exception) -> bool:
    """Whether it comes from a connection or a server that may be there again, as it was, later."""
    import aiohttp
    import requests

    if isinstance(error, RuntimeError):
        status = re.search(r"status code (\d+)", str(error))
        return "WebSocket" in str(error) or (status is not None and status.group(1).startswith("5"))
    return isinstance(error, ConnectionError | TimeoutError | aiohttp.ClientError | requests.RequestException)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
