"""What can be wrong with a store, in the user's words."""

from __future__ import annotations

from lqray.experiment.secrets import masked


class StoreError(ConnectionError):
    """The MLflow store cannot be used, and waiting does not help. The message says what was found and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class StoreBusyError(StoreError):
    """The MLflow store cannot be used now, and may be a moment later."""


class StoreAwayError(StoreError):
    """The MLflow store could not be reached for as long as one was ready to wait."""


class NoStoreError(StoreError):
    """There is no MLflow store at this address yet."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"no MLflow store at {uri}; `lqray run FILE` makes it, --uri names another")
