"""Access to an MLflow store that may be away for a while, as orchestration uses it."""

from lqray.store.client import client_of, patient_client, reading_client
from lqray.store.errors import StoreAwayError, StoreError
from lqray.store.outage import PATIENCE, READ_PATIENCE, hasten, is_away, lost_for_good, patiently

__all__ = [
    "PATIENCE",
    "READ_PATIENCE",
    "StoreAwayError",
    "StoreError",
    "client_of",
    "hasten",
    "is_away",
    "lost_for_good",
    "patient_client",
    "patiently",
    "reading_client",
]
