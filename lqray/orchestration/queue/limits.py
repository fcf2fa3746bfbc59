"""How long a launch goes on with what fails, waits or takes too long."""

from __future__ import annotations

from dataclasses import dataclass

MOST_RETRIES = 3
_FIRST_DELAY = 2.0


@dataclass(frozen=True)
class Limits:
    """max_failures: after so many no further trial is begun. backoff: seconds before the first of `retries`; each
    further one waits four times as long. held: seconds that trials of other launches are waited for when nothing else
    is left to do; then those are left whose launch is surely at work. trial_seconds: that a trial may run, over all its
    tries."""

    max_failures: int | None = None
    backoff: float = _FIRST_DELAY
    retries: int = MOST_RETRIES
    held: float = 40.0
    trial_seconds: float | None = None

    @property
    def over_time(self) -> str | None:
        """Why a trial that ran longer is stopped."""
        most = self.trial_seconds
        return None if most is None else f"resources.trial_time_limit: {most:.10g} s are over"
