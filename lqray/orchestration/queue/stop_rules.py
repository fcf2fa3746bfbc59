"""Rules that end a trial early: `lqray run --stop-on RULE`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lqray.experiment.headline import SHORT

_RULE = re.compile(r"(?P<metric>[\w/.-]+?)\s*(?P<sign>[<>])\s*(?P<value>[-+0-9.eE]+)(\s*@\s*(?P<step>\d+))?\Z")


class StopRuleError(ValueError):
    """A rule that cannot be read."""


@dataclass(frozen=True)
class StopRule:
    """Broken when a reported metric is on the wrong side of `value`, from `step` on; or, without a metric, by NaN and
    skipped steps."""

    metric: str | None = None
    sign: str = ""
    value: float = 0.0
    step: int = 0

    def broken(self, step: int, metrics: Mapping[str, float]) -> bool:
        """By a report after `step` iterations."""
        if self.metric is None:
            return any(math.isnan(value) for value in metrics.values()) or metrics.get("train/skipped_steps", 0) > 0
        if self.metric not in metrics or step < self.step:
            return False
        return metrics[self.metric] < self.value if self.sign == "<" else metrics[self.metric] > self.value

    def __str__(self) -> str:
        return "NaN" if self.metric is None else f"{self.metric}{self.sign}{self.value:g}@{self.step}"


def parse_stop_rule(text: str) -> StopRule:
    """`NaN`, or `METRIC<VALUE@STEP` (or `>`; @STEP may be left out). `accuracy` is test/accuracy, `loss` train/loss;
    so are other words of `lqray.experiment.headline.SHORT`.

    Raises StopRuleError.
    """
    if text.strip().lower() == "nan":
        return StopRule()
    found = _RULE.match(text.strip())
    try:
        if found:
            metric = SHORT.get(found["metric"], found["metric"])
            return StopRule(metric, found["sign"], float(found["value"]), int(found["step"] or 0))
    except ValueError:
        pass
    raise StopRuleError(
        f"found {text!r} for --stop-on; allowed: NaN, or a metric with a bound, such as accuracy<0.2@1000 "
        "(test accuracy below 0.2 at an evaluation after 1000 or more iterations) or train/loss>10"
    )
