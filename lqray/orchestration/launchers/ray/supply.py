"""Between the queue of trials and Ray Tune. Imports Ray at once: import it where Ray is needed anyway."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune import Callback
from ray.tune.search import Searcher

from lqray.orchestration.launchers.contract import Queue, TrialResult, Work
from lqray.orchestration.launchers.ray.channel import Ended
from lqray.orchestration.launchers.ray.deaths import failure_of_death
from lqray.orchestration.worker.task import Outcome

_BEGIN_SECONDS = 1.0


class Supply(Searcher):  # type: ignore[misc]
    """Tune asks it for the next trial; Tune's own trials are one for each start of ours. room: how many may run at a
    time, as of now. stopped: whether no more are to come, whatever the queue has."""

    def __init__(
        self,
        queue: Queue,
        config: Callable[[Work], dict[str, Any]],
        room: Callable[[], int],
        stopped: Callable[[], bool] = bool,
    ) -> None:
        super().__init__()
        self._queue, self._config, self._room, self._stopped = queue, config, room, stopped
        self.works: dict[str, Work] = {}

    def suggest(self, trial_id: str) -> Any:
        """Tune's hook. None: ask again later. Never waits for long: Tune's loop stands still meanwhile."""
        if self._stopped():
            return Searcher.FINISHED
        work = self._queue.take(_BEGIN_SECONDS) if len(self.works) < self._room() else None
        if work is None:
            return Searcher.FINISHED if self._queue.over else None
        self.works[trial_id] = work
        return self._config(work)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Tune's hook: `Results` knows more."""

    def save(self, checkpoint_path: str) -> None:
        """Tune's hook: Tuner.restore is not how lqray resumes."""

    def restore(self, checkpoint_path: str) -> None:
        """Tune's hook."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Stopper(tune.Stopper):  # type: ignore[misc]
    """Lets Tune end, with all its trials."""

    def __init__(self) -> None:
        self._asked = False

    def set(self) -> None:
        """From now on."""
        self._asked = True

    @property
    def asked(self) -> bool:
        """Whether it was set."""
        return self._asked

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tune's hook: of one trial."""
        return False

    def stop_all(self) -> bool:
        """Tune's hook."""
        return self._asked


class Results(Callback):  # type: ignore[misc]
    """Tells the queue how every start of a trial ended. end_of: what its driver said of it, None when nothing: then
    Tune has stopped it early, or its driver died, or its mailbox did."""

    def __init__(
        self,
        queue: Queue,
        supply: Supply,
        end_of: Callable[[Work], Ended | None],
        result_of: Callable[[Work, dict[int, Outcome], str | None, str], TrialResult],
    ) -> None:
        self._queue, self._supply, self._end_of, self._result_of = queue, supply, end_of, result_of

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune's hook."""
        # An evaluation names its iteration, and the last result does not: after that one, Tune stopped nothing.
        at = (trial.last_result or {}).get("iteration")
        why = "how the trial ended did not reach this launch: the actor that had the word died" if at is None else ""
        self._end(trial, why, f"early stopping after {at} iterations")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune's hook: the driver died; Tune has written down why."""
        text = Path(trial.error_file).read_text() if trial.error_file else "the trial's driver died"
        self._end(trial, f"the driver of the trial ended without a word:\n{text}")

    def _end(self, trial: Any, why: str, early: str = "") -> None:
        """why: it failed, where no outcome says otherwise. early: else why Tune stopped it."""
        work = self._supply.works.pop(trial.trial_id, None)
        if work is None:
            return  # told before
        try:
            ended = self._end_of(work)
        except RayError as error:  # of this trial nothing will be heard any more
            ended, why = None, f"how the trial ended did not reach this launch: {error}\n{why or early}"
        if ended is not None:
            asked = self._queue.stop_reason(work.named.trial.id)
            self._queue.ended(self._result_of(work, ended.outcomes, asked, ended.drained))
        elif why:
            self._queue.ended(
                TrialResult(
                    work.named, "FAILED", run_id=work.run_id, failure=failure_of_death(why, "the driver of the trial")
                )
            )
        else:
            self._queue.ended(TrialResult(work.named, "KILLED", run_id=work.run_id, stopped=early, early=True))
