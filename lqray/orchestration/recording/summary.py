"""Keeps the description of an experiment current while its sweep runs, from what the launch hears of its trials."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from lqray.experiment.grid import Experiment, NamedTrial
from lqray.experiment.standing import BestTrial, Standing
from lqray.experiment.yaml import leading_comment
from lqray.orchestration.launchers.contract import TrialResult
from lqray.store.launches import Launch, describe_experiment
from lqray.store.runs import Run
from lqray.store.tags import COMMAND

_EVERY_SECONDS = 5.0


class SummaryWriter:
    """Thread-safe. runs: of the experiment's trials in the store, by trial id, with their headline metrics. summary: a
    standing in Markdown.

    The store is only written to: nothing is read again while a sweep runs.
    """

    def __init__(
        self,
        launch: Launch,
        experiment: Experiment,
        trials: Sequence[NamedTrial],
        runs: Mapping[str, Run],
        summary: Callable[[Standing], str],
    ) -> None:
        self._launch, self._experiment, self._summary = launch, experiment, summary
        self._headline = experiment.headline
        self._lock = threading.Lock()
        self._states: dict[str, str] = {}
        self._finished: dict[str, tuple[str, str, float | None]] = {}
        self._changed, self._told = True, -_EVERY_SECONDS
        for named in trials:
            self._see(named, runs.get(named.trial.id))

    def began(self, named: NamedTrial) -> None:
        """A trial runs."""
        with self._lock:
            self._states[named.trial.id] = "running"
            self._changed = True

    def ended(self, result: TrialResult) -> None:
        """A trial ended for good."""
        with self._lock:
            self._end(result.named, result.status.lower(), result.metrics.get(self._headline.metric))
            self._changed = True

    def look_again(self, runs: Mapping[str, Run], trials: Sequence[NamedTrial]) -> None:
        """Take what the store says now: other launches have ended trials, too."""
        with self._lock:
            for named in trials:
                self._see(named, runs.get(named.trial.id))
            self._changed = True

    def tell(self, now: bool = False) -> None:
        """Write the description where something has changed, at most every five seconds unless it has to be now."""
        with self._lock:
            due = now or time.monotonic() - self._told >= _EVERY_SECONDS
            if not self._changed or not due:
                return
            text = self._summary(self._standing())
            self._changed, self._told = False, time.monotonic()
        try:
            describe_experiment(self._launch, text)
        except Exception:
            with self._lock:
                self._changed = True
            raise

    def _see(self, named: NamedTrial, run: Run | None) -> None:
        self._end(
            named, run.status.lower() if run else "not begun", run.metrics.get(self._headline.metric) if run else None
        )

    def _end(self, named: NamedTrial, state: str, value: float | None) -> None:
        trial_id = named.trial.id
        self._states[trial_id] = state
        self._finished.pop(trial_id, None)
        if state == "finished":
            self._finished[trial_id] = named.trial.quantizer.method, named.name, value

    def _standing(self) -> Standing:
        methods: dict[str, list[tuple[str, float]]] = {}
        for method, name, value in self._finished.values():
            if value is not None and math.isfinite(value):
                methods.setdefault(method, []).append((name, value))
        best, sign = [], 1 if self._headline.higher else -1
        for method, own in methods.items():
            name, value = max(own, key=lambda one: sign * one[1])
            best.append(BestTrial(method, name, value, len(own)))
        return Standing(
            experiment=self._experiment.name,
            question=leading_comment(self._launch.source),
            axes=self._experiment.axis_values,
            counts=Counter(self._states.values()),
            best=sorted(best, key=lambda one: -sign * one.value),
            command=self._launch.tags.get(COMMAND, ""),
            time=time.time(),
            searched=self._experiment.adaptive,
            headline=self._headline,
        )
