"""Access to an MLflow store that may be away for a while."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from lqray.experiment.secrets import masked
from lqray.orchestration.signals import heard_seconds_ago

T = TypeVar("T")

_FIRST_DELAY, _LAST_DELAY = 0.5, 15.0
_HURRIED = 20.0  # seconds for all that is still to be recorded after Ctrl-C
PATIENCE = 600.0
"""Seconds that a launch waits for a store that is away before it gives up."""


class StoreAwayError(ConnectionError):
    """The MLflow store could not be reached for as long as one was ready to wait."""


def client_of(uri: str) -> Any:
    """An MlflowClient that reports a server that is away within seconds: how long to wait is decided here."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    # A new store's creation is no news to the user.
    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def is_away(error: BaseException) -> bool:
    """Whether a store's error may go away by itself: no connection, a server that starts or is overloaded, a lock,
    another process that wrote the same at the same moment."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if type(error).__module__.startswith(("requests", "urllib3")):
        return True
    if not isinstance(error, MlflowException):
        return type(error).__name__ == "OperationalError"
    # Two that set a new tag at the same moment: MLflow looks and then inserts, and a database with rows locked one by
    # one, such as PostgreSQL, refuses the second. The next time it finds the tag and changes it.
    if any(text in str(error) for text in ("UniqueViolation", "UNIQUE constraint failed")):
        return True
    return error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


def patiently(call: Callable[[], T], patience: float = PATIENCE) -> T:
    """The result of a call to a store, repeated with back-off while the store is away.

    For calls that may be made twice. Raises StoreAwayError after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    delay = _FIRST_DELAY
    while True:
        try:
            return call()
        except Exception as error:
            if not is_away(error):
                raise
            since = heard_seconds_ago()
            if since is not None:  # whoever ends a launch does not wait ten minutes more
                deadline = min(deadline, time.monotonic() - since + _HURRIED)
            if time.monotonic() + delay > deadline:
                raise StoreAwayError(masked(f"the MLflow store cannot be reached: {error}")) from error
        time.sleep(delay)
        delay = min(2 * delay, _LAST_DELAY)
