"""Where trials on a Ray cluster post their news, and the launcher its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lqray.orchestration.cluster import on_this_node
from lqray.orchestration.worker import Heard, News, Outcome

Ended = tuple[str, int, dict[int, Outcome]]
"""Trial, start, and what its ranks say of the end."""


class Board:
    """One of a launch; an actor, made by `make_board`."""

    def __init__(self) -> None:
        self._news: list[News | Ended] = []
        self._answers: dict[str, Heard] = {}
        self._halted: set[tuple[str, int]] = set()

    def post(self, news: News) -> Heard:
        """From rank 0 of a trial."""
        self._news.append(news)
        heard = self._answers.get(news.trial_id, Heard())
        return Heard(heard.delivered, True) if (news.trial_id, news.start) in self._halted else heard

    def ended(self, trial_id: str, start: int, outcomes: dict[int, Outcome]) -> None:
        """From the driver of a trial, when it is over; answered when the launcher can take it."""
        self._news.append((trial_id, start, outcomes))

    def halt(self, trial_id: str, start: int) -> None:
        """From the driver of a trial that Tune has stopped."""
        self._halted.add((trial_id, start))

    def exchange(self, answers: Mapping[str, Heard]) -> list[News | Ended]:
        """From the launcher: its answers to trials that run, for all the news."""
        self._answers = dict(answers)
        news, self._news = self._news, []
        return news


def make_board() -> Any:
    """Its handle; no CPU is taken for it. It is on the launcher's node."""
    import ray

    return ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(Board).remote()
