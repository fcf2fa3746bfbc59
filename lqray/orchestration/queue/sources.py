"""Where trials come from: a file that says all of them; see `optuna` for those that a search suggests."""

from __future__ import annotations

from collections.abc import Iterable

from lqray.experiment.grid import NamedTrial
from lqray.orchestration.launchers.contract import Source, TrialResult


class Given(Source):
    """Trials that are known ahead, in their order."""

    def __init__(self, trials: Iterable[NamedTrial]) -> None:
        self._rest = iter(trials)
        self._ahead: NamedTrial | None = None
        self._over = False

    def next(self) -> NamedTrial | None:
        """See `Source`."""
        self._look()
        chosen, self._ahead = self._ahead, None
        return chosen

    @property
    def over(self) -> bool:
        """See `Source`."""
        self._look()
        return self._over

    def told(self, result: TrialResult) -> None:
        """See `Source`: nothing depends on results."""

    def _look(self) -> None:
        if self._ahead is None and not self._over:
            self._ahead = next(self._rest, None)
            self._over = self._ahead is None
