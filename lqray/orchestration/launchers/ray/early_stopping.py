"""Early stopping by asynchronous successive halving (ASHA, arXiv:1810.05934), as Ray Tune has it, with a memory.

Ray's scheduler keeps its rungs, what trials had reached after so many iterations, only as long as it runs, and knows
trials by Tune's ids, which are new for every start. Here a trial is known by its own id, evaluations of earlier
launches are fed back, and a value that is no number is the worst there is: NaN compares with nothing, so that Ray would
let such a trial run to the end.

Imports Ray at once: import it where Ray is needed anyway.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.schedulers.async_hyperband import _Bracket

from lqray.experiment.options.search import EarlyStopping
from lqray.store.evaluations import Evaluation

_NO_END = 10**9


class RememberingHalving(AsyncHyperBandScheduler):  # type: ignore[misc]
    """See `stored_evaluations` for `earlier`. How long a trial is, is the trial's affair: the rungs have no end."""

    def __init__(self, stopping: EarlyStopping, earlier: Iterable[Evaluation] = ()) -> None:
        super().__init__(
            time_attr="iteration",
            metric=stopping.metric,
            mode=stopping.mode,
            max_t=_NO_END,
            grace_period=stopping.grace_period,
            reduction_factor=stopping.reduction_factor,
            brackets=stopping.brackets,
        )
        self._grace = stopping.grace_period
        self._brackets = [
            _Rungs(stopping.grace_period, _NO_END, stopping.reduction_factor, number)
            for number in range(stopping.brackets)
        ]
        self._condemned: set[str] = set()
        for one in earlier:
            # A trial that went on after a rung had passed it; only of its last evaluation nothing is known.
            self._condemned.discard(one.trial_id)
            if self._judge(one.trial_id, one.iteration, one.value) == TrialScheduler.STOP:
                self._condemned.add(one.trial_id)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tune's hook: which bracket a trial is in is a function of its id (`_bracket`)."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's hook."""
        if self._time_attr not in result or self._metric not in result:
            return str(TrialScheduler.CONTINUE)
        trial_id = trial.config["task"].trial_id
        if trial_id in self._condemned:
            action = str(TrialScheduler.STOP)
        else:
            action = self._judge(trial_id, result[self._time_attr], result[self._metric])
        if action == TrialScheduler.STOP:
            self._num_stopped += 1
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tune's hook: the last evaluation came as a result before."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Tune's hook."""

    def _judge(self, trial_id: str, iteration: int, value: float) -> str:
        reward = self._metric_op * value
        if math.isnan(reward) or reward == -math.inf:
            reward = -math.inf
        action = str(self._bracket(trial_id).on_result(_Known(trial_id), iteration, reward))
        worst = reward == -math.inf and iteration >= self._grace
        return str(TrialScheduler.STOP) if worst else action

    def _bracket(self, trial_id: str) -> _Bracket:
        """As Ray draws it, with a softmax of the numbers of rungs, but the same at every start of a trial."""
        sizes = [len(bracket._rungs) for bracket in self._brackets]
        weights = [math.exp(size - max(sizes)) for size in sizes]
        return random.Random(trial_id).choices(self._brackets, weights)[0]


@dataclass(frozen=True)
class _Known:
    """What a bracket asks of a trial."""

    trial_id: str


class _Rungs(_Bracket):  # type: ignore[misc]
    """A bracket that knows what lies between the worst there is and a number."""

    def cutoff(self, recorded: dict[str, float]) -> float | None:
        """The reward below which a trial stops: the quantile 1 - 1/reduction_factor, linear between two."""
        if not recorded:
            return None
        values = sorted(recorded.values())
        position = (1 - 1 / self.rf) * (len(values) - 1)
        low, high = values[math.floor(position)], values[math.ceil(position)]
        share = float(position - math.floor(position))
        return float(low if share == 0 or low == -math.inf else low + share * (high - low))
