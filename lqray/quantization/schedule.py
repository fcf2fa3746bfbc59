"""When levels are updated."""

from __future__ import annotations

import bisect
from dataclasses import dataclass


@dataclass(frozen=True)
class UpdateSchedule:
    """Levels are fitted after the backward passes of the iterations `at`, then `every` so many after the last of them
    (0: no more). The paper: at 0, 100, 2000, then every 10,000."""

    at: tuple[int, ...] = ()
    every: int = 0

    def next_due(self, iteration: int) -> int | None:
        """The first due iteration that is not before `iteration`, or None when there is none."""
        index = bisect.bisect_left(self.at, iteration)
        if index < len(self.at):
            return self.at[index]
        if not self.every:
            return None
        last = self.at[-1] if self.at else 0
        periods = max(1, -(-(iteration - last) // self.every))
        return last + periods * self.every

    def is_due(self, iteration: int) -> bool:
        """Whether the levels are fitted after this iteration's backward pass."""
        return self.next_due(iteration) == iteration

    def wants_sample(self, iteration: int, samples: int) -> bool:
        """Whether this iteration's gradient is among the last `samples` before a fit, its own included."""
        due = self.next_due(iteration)
        return due is not None and due - iteration < samples
