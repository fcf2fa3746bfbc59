"""A job that is followed to its end, through connections that break, from a place that is not the cluster's."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any, Literal

from lqray.experiment.secrets import masked
from lqray.orchestration.remote.job_server import SubmissionError, first_line, may_pass, why

PATIENCE = 600.0
_FIRST_DELAY, _LAST_DELAY = 1.0, 15.0
_WITHOUT_LOG = 60.0
"""Seconds of trouble with a job's log after which its end alone is enough; and without any after which a new loss of
the connection is a loss of its own, and not more of the one before."""
_QUIET_SECONDS, _QUIET_TIMES = 10.0, 6
_OF_THE_LOG = re.compile(r",? *last available logs .*", re.DOTALL)
# The last line of a log: elsewhere such words may be a warning.
_MISSING = re.compile(r"No module named '?(?P<module>[A-Za-z_][\w.]*)'?\s*\Z|lqray needs (?P<needed>\w+), which.*\s*\Z")

Outcome = Literal["SUCCEEDED", "FAILED", "STOPPED"]


class Following:
    """A job's way to its end. connect: a client of its server, with its address; asked again after a broken connection.
    say: told of such breaks, and why the job failed. show: given its log, in pieces, each once."""

    def __init__(
        self,
        submission_id: str,
        connect: Callable[[], tuple[Any, str]],
        say: Callable[[str], None],
        show: Callable[[str], None] | None,
    ) -> None:
        self._id, self._connect, self._say, self._show = submission_id, connect, say, show
        self._told = ""

    def outcome(self, client: Any, address: str) -> Outcome:
        """How the job ended, as soon as it has. client, address: a connection that there is.

        A broken connection is made again, with back-off, and the log goes on where it was. Raises SubmissionError when
        that fails for PATIENCE seconds, or the job is not known any more.
        """
        log = _Log(self._show)
        lost, trouble, delay = False, 0.0, _FIRST_DELAY
        heard = time.monotonic()
        while True:
            begun = time.monotonic()
            try:
                if lost:
                    client, address = self._connect()
                    client.get_job_status(self._id)
                    self._say(f"connected to {address} again")
                    lost, heard = False, time.monotonic()
                try:
                    if self._show:
                        asyncio.run(log.follow(client, self._id))
                except Exception as error:
                    if not trouble or time.monotonic() - trouble < _WITHOUT_LOG or not may_pass(error):
                        raise
                    if not (ended := self._ended(client, log_was_shown=False)):
                        raise
                    return ended  # its log cannot be had, its end can
                if ended := self._ended(client, log_was_shown=self._show is not None):
                    return ended
                trouble, delay, heard = 0.0, _FIRST_DELAY, time.monotonic()
                time.sleep(_FIRST_DELAY)
            except BrokenPipeError:  # of our own output
                raise
            except Exception as error:
                if not may_pass(error):
                    raise SubmissionError(self._why(address, error)) from error
                now = time.monotonic()
                if not lost and now - begun > _WITHOUT_LOG:  # the log came for a while
                    trouble, delay = 0.0, _FIRST_DELAY
                if not lost:
                    self._say(f"lost the connection to {address} ({first_line(error)}); trying again")
                    heard = now
                lost, trouble = True, trouble or now
                if now - heard > PATIENCE:
                    raise SubmissionError(
                        f"{address} did not answer for {PATIENCE:g} s; the job goes on if its cluster does"
                    ) from error
                time.sleep(delay)
                delay = min(2 * delay, _LAST_DELAY)

    def _ended(self, client: Any, log_was_shown: bool) -> Outcome | None:
        status = client.get_job_status(self._id)
        ended: Outcome | None = status.value if status.is_terminal() else None
        if ended == "FAILED":
            message = client.get_job_info(self._id).message or ""
            if message and message != self._told:
                self._told = message
                self._say(masked(_in_short(message) if log_was_shown else message) + _what_to_do(message))
        return ended

    def _why(self, address: str, error: Exception) -> str:
        if isinstance(error, RuntimeError) and "status code 404" in str(error):
            return (
                f"{address} answers, and knows nothing of {self._id}: the cluster was started anew, and forgot its "
                "jobs. What was recorded is kept: submit it again, and it continues."
            )
        return why(address, error)


def _in_short(message: str) -> str:
    """Without the end of the log, which was shown."""
    return _OF_THE_LOG.sub("", message)


def _what_to_do(message: str) -> str:
    """Further lines for a job that lacked something."""
    missing = _MISSING.search(message)
    if missing is None:
        return ""
    module = missing["module"] or missing["needed"]
    if module.startswith("lqray."):
        return f"\n{module} was not sent: does .gitignore name it?"
    return (
        f"\nThe cluster's Python has no {module}. `ray up cluster.yaml` installs what lqray needs on all machines, and "
        "`make run` in its source tree on one; then submit it again."
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
