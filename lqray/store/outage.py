"""The one rule for a store that is away: what is waited for, for how long, and what the user is told.

What may go away by itself is waited for: no connection, a server that starts or is overloaded, a lock, a full disk.
What does not (a file that is gone or was replaced, tables that are not MLflow's, a password that is refused) is an
error at once. The first process of a launch says one line when a wait begins and one when it is over; its helpers and
MLflow itself are silent.
"""

from __future__ import annotations

import multiprocessing
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from lqray.experiment.secrets import masked
from lqray.store import sqlite_file
from lqray.store.errors import StoreAwayError, StoreBusyError, StoreError

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds that a launch waits for a store that is away before it gives up."""
READ_PATIENCE = 10.0
"""Seconds that commands which only read wait for it."""
HURRIED = 20.0
"""Seconds for all that is still to be recorded once a launch was told to end."""

_FIRST_DELAY, _LAST_DELAY = 0.5, 15.0
_LONG_CALL = 2.0  # a call that took so long to fail is told of at once; a shorter one, when the next fails too
_TOLD_AGAIN = 60.0  # a store that comes and goes is told of once a minute
_PERMANENT = re.compile(
    r"no such (?:table|column)|readonly database|read-only|not a database|database disk image is malformed"
    r"|unable to open database file|UndefinedTable|UndefinedColumn|authentication failed|no pg_hba\.conf"
    r"|(?:database|role) \"[^\"]*\" does not exist|permission denied|Access denied|Unknown database"
    r"|CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER"
)
_BUSY = re.compile(r"locked|locking protocol|disk I/O error|is full")
_BAD_ADDRESSES = ("InvalidURL", "MissingSchema", "InvalidSchema", "InvalidHeader", "LocationParseError")
_SAME_MOMENT = ("UniqueViolation", "UNIQUE constraint failed")
_MINE = (401, 403, 407)
"""Statuses of HTTP that the caller has to mend, whoever answers them."""


def is_away(error: BaseException) -> bool:
    """Whether a store's error may go away by itself: no connection, a server that starts, is overloaded or hidden by
    a proxy's page, a lock, another process that wrote the same at the same moment."""
    chain = list(_causes(error))
    for one in chain:
        if isinstance(one, StoreError):
            return isinstance(one, StoreBusyError)
    if sqlite_file.moved() or _PERMANENT.search(" ".join(str(one) for one in chain)):
        return False
    verdicts = [verdict for one in reversed(chain) if (verdict := _verdict(one)) is not None]
    return bool(verdicts) and verdicts[0]


def explained(error: BaseException) -> str:
    """Why a store cannot be used, in a few words."""
    text = " ".join(str(error).split())
    refused = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    if refused:
        return refused[1]
    if "not in a valid JSON format" in text:
        return "it answers with a page instead of data: a proxy, or not an MLflow server"
    status = re.search(r"too many (\d+) error responses|failed with error code (\d+)", text)
    if status:
        return f"it answers with HTTP status {status[1] or status[2]}"
    if "timed out" in text:
        return "no answer in time"
    found = re.search(r"\((?:sqlite3|psycopg\w*|pymysql|MySQLdb)[\w.]*\) (.+?)(?: \[SQL| \(Background|$)", text)
    return masked(found[1] if found else text)[:300]


def patiently(call: Callable[[], T], patience: float = PATIENCE) -> T:
    """The result of a call to a store, repeated with back-off while the store is away.

    For calls that may be made twice. Raises StoreAwayError after `patience` seconds; StoreError at once, where waiting
    does not help; what else the call raises. Within a call that is itself made so, only the outer one waits.
    """
    if getattr(_within, "patiently", False):
        return call()
    _within.patiently = True
    try:
        return _repeated(call, patience)
    finally:
        _within.patiently = False


def _repeated(call: Callable[[], T], patience: float) -> T:
    begun = time.monotonic()
    waiting: _Wait | None = None
    delay = _FIRST_DELAY
    try:
        while True:
            called = time.monotonic()
            try:
                result = call()
            except Exception as error:
                lost = lost_for_good(error)
                if lost is not None and lost is not error:
                    raise lost from error
                if not is_away(error):
                    raise
                waiting = waiting or _outage.join()
                now = time.monotonic()
                deadline = min(begun + patience, now + _outage.left_to_wait())
                if now + delay > deadline:
                    raise StoreAwayError(
                        f"{_outage.store} cannot be reached: {explained(error)}. {_remedy(error)}"
                    ) from error
                waiting.failed(error, deadline, patience > READ_PATIENCE, now - called > _LONG_CALL)
            else:
                if waiting:
                    waiting.over()
                return result
            time.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY)
    finally:
        if waiting:
            waiting.leave()


def hasten(told_to_end: Callable[[], float | None]) -> None:
    """Ask this whenever somebody waits: how many seconds ago the launch was told to end, None while it was not. From
    then on nobody waits for the store beyond HURRIED seconds."""
    _outage.told_to_end = told_to_end


def concerns(uri: str) -> None:
    """Name the store that is told of when it is away."""
    _outage.store = f"the MLflow store {masked(uri)}"


class _Outage:
    """What this process knows, and has said, of the store's absence: once for all its threads."""

    def __init__(self) -> None:
        self.store = "the MLflow store"
        self.told_to_end: Callable[[], float | None] = lambda: None
        self.lock = threading.Lock()
        self.waiting = 0
        self.since: float | None = None
        self.told: float | None = None
        self.silent_until = 0.0

    def left_to_wait(self) -> float:
        """Seconds that anybody may still wait."""
        since = self.told_to_end()
        return float("inf") if since is None else max(0.0, HURRIED - since)

    def join(self) -> _Wait:
        with self.lock:
            self.waiting += 1
            self.since = self.since or time.time()
        return _Wait(self)


class _Wait:
    """One call that waits for the store."""

    def __init__(self, outage: _Outage) -> None:
        self._outage = outage
        self._failures = 0

    def failed(self, error: BaseException, deadline: float, aloud: bool, long: bool) -> None:
        """One more failure: tell the user of the first of an outage, once it is more than a hiccup."""
        self._failures += 1
        outage, now = self._outage, time.monotonic()
        with outage.lock:
            if not aloud or outage.told is not None or now < outage.silent_until or not (long or self._failures > 1):
                return
            outage.told, outage.silent_until = now, now + _TOLD_AGAIN
            since = time.strftime("%H:%M:%S", time.localtime(outage.since))
        left = max(1, round((deadline - now) / 60))
        say(
            f"lqray: {outage.store} is away since {since}: {explained(error)}. What trains goes on; waiting at most "
            f"{left} min. {_remedy(error)}"
        )

    def over(self) -> None:
        """The store answered."""
        outage = self._outage
        with outage.lock:
            last = outage.waiting == 1
            back = time.time() - (outage.since or 0.0) if last and outage.told is not None else None
            if last:
                outage.since = outage.told = None
        if back is not None:
            say(f"lqray: {outage.store} is back after {back:.0f} s.")

    def leave(self) -> None:
        """The call has its answer, or has given up."""
        with self._outage.lock:
            self._outage.waiting -= 1
            if not self._outage.waiting:
                self._outage.since = self._outage.told = None


_outage = _Outage()
_within = threading.local()


def say(line: str) -> None:
    """A line on the terminal of whoever started the launch, also above what is drawn there; helpers of the launch are
    silent, since it meets the same store."""
    if multiprocessing.parent_process() is not None:
        return
    try:
        sys.stderr.write(masked(line) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # nobody listens any more: a closed terminal ends what is printed, not what is done


def lost_for_good(error: BaseException) -> StoreError | None:
    """The store's file is not what it was: whatever was raised, that is the reason. Also an error of ours that MLflow
    has wrapped."""
    for one in _causes(error):
        if isinstance(one, StoreError):
            return None if isinstance(one, StoreBusyError | StoreAwayError) else one
    moved = sqlite_file.moved()
    return StoreError(moved) if moved else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it came of. MLflow raises some of its own inside an except clause without naming the cause;
    SQLAlchemy keeps it in `orig`."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        implicit = following.__context__ if _root(following) == "mlflow" else None
        following = following.__cause__ or getattr(following, "orig", None) or implicit


def _root(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _verdict(error: BaseException) -> bool | None:
    """Whether an error of its own kind may go away; None for one that says nothing of it."""
    root = _root(error)
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, sqlite3.OperationalError):
        return bool(_BUSY.search(str(error)))
    if root in ("requests", "urllib3"):
        return _of_transport(error)
    if root in ("psycopg", "psycopg2", "pymysql", "MySQLdb"):
        # Transactions that met (deadlock, serialization) are operational errors, too.
        names = {base.__name__ for base in type(error).__mro__}
        return True if names & {"OperationalError", "InterfaceError"} else None
    if root == "sqlalchemy":
        return True if type(error).__name__ == "TimeoutError" else None
    if root == "mlflow":
        return _of_mlflow(error)
    return True if type(error).__module__ == "json.decoder" else None


def _of_transport(error: BaseException) -> bool:
    if type(error).__name__ in _BAD_ADDRESSES:
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return bool(status >= 500 or status in (408, 429))
    return "Tunnel connection failed: 4" not in str(error)


def _of_mlflow(error: BaseException) -> bool | None:
    code, text = getattr(error, "error_code", None), str(error)
    if code in ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"):
        return True
    # Two that set a new tag at the same moment: MLflow looks and then inserts, and a database with rows locked one by
    # one, such as PostgreSQL, refuses the second. The next time it finds the tag and changes it.
    if code in ("BAD_REQUEST", "INTERNAL_ERROR") and any(one in text for one in _SAME_MOMENT):
        return True
    if "not in a valid JSON format" in text:
        return True
    page = re.search(r"API request to endpoint \S+ failed with error code (\d+)", text)
    if page:  # no JSON: whoever answered was not MLflow
        return int(page[1]) not in _MINE
    if hasattr(error, "json"):  # a server's own words
        return bool(error.get_http_status_code() >= 500)  # type: ignore[attr-defined]
    return True if re.search(r"API request to \S+ failed with", text) else None


def _remedy(error: BaseException) -> str:
    import os

    text = str(error)
    if "locked" in text:
        return "Another process holds it: end that, or wait."
    if "is full" in text or "disk I/O" in text:
        return "Look at the disk that it is on, and free space."
    proxies = [name for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy") if os.environ.get(name)]
    remedy = "Look whether its server runs and its address is right; the same command goes on later where this ends."
    if proxies and "http" in _outage.store:
        remedy += f" {proxies[0]} is set: name the server in NO_PROXY where it is reached without the proxy."
    return remedy
