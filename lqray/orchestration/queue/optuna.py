"""Trials that Optuna suggests, by its own ask and tell.

Optuna's storages stay unused: what was tried and how it ended is in MLflow, and two records can disagree.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

from lqray.experiment.grid import Experiment, NamedTrial
from lqray.experiment.options.search import Domain
from lqray.experiment.seeding import derive_seed
from lqray.orchestration.launchers.contract import TrialResult
from lqray.orchestration.launchers.placement import PlacementError

_MOST_REPEATED = 100


class OptunaSource:
    """See `lqray.orchestration.launchers.contract.Source`. Trials begun before come first; then Optuna's, `samples` of
    them.

    observed: values and metric of finished trials. known: ids of trials suggested before. Raises PlacementError where
    optuna is not installed.
    """

    def __init__(
        self,
        experiment: Experiment,
        begun: Iterable[NamedTrial],
        observed: Iterable[tuple[dict[str, Any], float]],
        known: Collection[str],
        samples: int,
    ) -> None:
        search = experiment.search
        assert search is not None
        try:
            import optuna
        except ImportError as error:
            raise PlacementError("search.sampler is optuna, which is not installed: pip install optuna") from error

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._experiment, self._metric, self._left = experiment, search.metric, samples
        self._begun, self._known = deque(begun), frozenset(known)
        self._asked: dict[str, Any] = {}
        self._space = {key: _distribution(domain) for key, domain in search.space.items()}
        # A launch that goes on where another ended must not draw the same numbers again.
        seed = derive_seed(search.seed, "optuna", len(self._known)) % 2**32
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed),
            direction="minimize" if search.mode == "min" else "maximize",
        )
        for values, metric in observed:
            seen = optuna.trial.create_trial(params=values, distributions=self._space, value=metric)
            self._study.add_trial(seen)

    def next(self) -> NamedTrial | None:
        """See `Source`."""
        if self._begun:
            return self._begun.popleft()
        for _ in range(_MOST_REPEATED if self._left else 0):
            asked = self._study.ask(self._space)
            named = self._experiment.suggested(asked.params)
            if named.trial.id not in self._asked and named.trial.id not in self._known:
                self._left -= 1
                self._asked[named.trial.id] = asked
                return named
            self._fail(asked)  # a draw that was made before teaches nothing new
        self._left = 0  # the space has no other values, or Optuna no doubt
        return None

    @property
    def over(self) -> bool:
        """See `Source`."""
        return not self._begun and not self._left

    def told(self, result: TrialResult) -> None:
        """See `Source`."""
        asked = self._asked.get(result.named.trial.id)
        value = result.metrics.get(self._metric, math.nan)
        if asked is not None and math.isfinite(value):
            self._study.tell(asked, value, skip_if_finished=True)
        elif asked is not None:
            self._fail(asked)

    def _fail(self, asked: Any) -> None:
        from optuna.trial import TrialState

        self._study.tell(asked, state=TrialState.FAIL, skip_if_finished=True)


def _distribution(domain: Domain) -> Any:
    """Optuna's form of it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if domain.choice is not None:
        return CategoricalDistribution(list(domain.choice))
    if domain.integer is not None:
        return IntDistribution(*domain.integer)
    if domain.log_uniform is not None:
        return FloatDistribution(*domain.log_uniform, log=True)
    assert domain.uniform is not None
    return FloatDistribution(*domain.uniform)
