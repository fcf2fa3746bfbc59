"""Trials that Optuna suggests, through Ray Tune's OptunaSearch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

from lqray.experiment.grid import Experiment, NamedTrial
from lqray.experiment.options.search import Domain
from lqray.orchestration.launchers.contract import TrialResult
from lqray.orchestration.launchers.placement import PlacementError
from lqray.training.seeding import derive_seed

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
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._experiment, self._metric, self._left = experiment, search.metric, samples
        self._begun, self._known = deque(begun), frozenset(known)
        self._names: dict[str, str] = {}
        self._count = 0
        space = {key: _domain(domain) for key, domain in search.space.items()}
        # A launch that goes on where another ended must not draw the same numbers again.
        seed = derive_seed(search.seed, "optuna", len(self._known)) % 2**32
        self._search = OptunaSearch(space=space, metric=search.metric, mode=search.mode, seed=seed)
        for values, metric in observed:
            self._search.add_evaluated_point(values, metric)

    def next(self) -> NamedTrial | None:
        """See `Source`."""
        if self._begun:
            return self._begun.popleft()
        for _ in range(_MOST_REPEATED if self._left else 0):
            self._count += 1
            name = f"suggestion-{self._count}"
            values = self._search.suggest(name)
            if values is None:
                return None
            named = self._experiment.suggested(values)
            if named.trial.id not in self._names and named.trial.id not in self._known:
                self._left -= 1
                self._names[named.trial.id] = name
                return named
            self._search.on_trial_complete(name, error=True)  # a draw that was made before teaches nothing new
        self._left = 0  # the space has no other values, or Optuna no doubt
        return None

    @property
    def over(self) -> bool:
        """See `Source`."""
        return not self._begun and not self._left

    def told(self, result: TrialResult) -> None:
        """See `Source`."""
        name = self._names.get(result.named.trial.id)
        if name and math.isfinite(result.metrics.get(self._metric, math.nan)):
            self._search.on_trial_complete(name, {self._metric: result.metrics[self._metric]})
        elif name:
            self._search.on_trial_complete(name, error=True)


def _domain(domain: Domain) -> Any:
    """Tune's form of it; Tune's integers leave the upper bound out."""
    from ray import tune

    if domain.choice is not None:
        return tune.choice(list(domain.choice))
    if domain.integer is not None:
        return tune.randint(domain.integer[0], domain.integer[1] + 1)
    if domain.log_uniform is not None:
        return tune.loguniform(*domain.log_uniform)
    assert domain.uniform is not None
    return tune.uniform(*domain.uniform)
