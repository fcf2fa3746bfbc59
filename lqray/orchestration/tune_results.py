"""From the end of a Tune trial to a TrialResult. Imports Ray at once: import it where Ray is needed anyway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback

from lqray.experiment.grid import NamedTrial
from lqray.experiment.schema import Trial
from lqray.orchestration.launcher import Status, TrialResult
from lqray.orchestration.tracking import Launch, end_dead_run


class TuneResults(Callback):  # type: ignore[misc]
    """Calls `on_end` with the result of every Tune trial that completes or fails."""

    def __init__(self, launch: Launch, by_id: Mapping[str, NamedTrial], on_end: Callable[[TrialResult], None]) -> None:
        self._launch = launch
        self._by_id = by_id
        self._on_end = on_end

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles callbacks into tuner.pkl for Tuner.restore, which is not how lqray resumes.
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune's hook."""
        last = trial.last_result
        status: Status = "FAILED" if last["error"] else "FINISHED"
        self._on_end(TrialResult(self._named(trial), status, last["metrics"], last["run_id"], last["error"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune's hook."""
        named = self._named(trial)
        # The driver died before it could record how its trial ended; Tune has written down why.
        text = Path(trial.error_file).read_text() if trial.error_file else "the trial's driver died"
        end_dead_run(self._launch, named.trial.id, text)
        self._on_end(TrialResult(named, "FAILED", error=text))

    def _named(self, trial: Any) -> NamedTrial:
        return self._by_id[Trial.model_validate(trial.config["trial"]["config"]).id]
