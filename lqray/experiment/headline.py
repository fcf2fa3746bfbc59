"""By which metric trials are judged, and how metrics are compared and written. Imports nothing heavy."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SHORT = {
    "accuracy": "test/accuracy",
    "perplexity": "test/perplexity",
    "bits_per_byte": "test/bits_per_byte",
    "excess_loss": "test/excess_loss",
    "loss": "train/loss",
}
"""Words that stand for metrics on the command line."""


@dataclass(frozen=True)
class Headline:
    """The metric by which trials are judged, and whether more of it is better."""

    metric: str = "test/accuracy"
    higher: bool = True

    def score(self, metrics: Mapping[str, float]) -> float:
        """Larger for better trials, comparable within a headline; NaN where it is not among the metrics."""
        value = metrics.get(self.metric, math.nan)
        return value if self.higher else -value


ACCURACY = Headline()
OF_TASKS = {
    "classification": ACCURACY,
    "language_modelling": Headline("test/loss", higher=False),
    "regression": Headline("test/loss", higher=False),
}
"""Of each task of lqray's, unless `task.headline` says otherwise."""

_OF_DATA = {"text": "language_modelling", "linear": "regression"}


def task_of_data(name: object) -> str:
    """The task of trials that do not say which: that of their data, which is classification for most."""
    return _OF_DATA.get(name, "classification") if isinstance(name, str) else "classification"


def headline_of(flat: Mapping[str, Any]) -> Headline:
    """Of a trial by its dotted keys, or of the recorded parameters of a run, which are text."""
    name = _plain(flat.get("task.name")) or task_of_data(flat.get("data.name"))
    own = OF_TASKS.get(str(name), ACCURACY)
    metric, higher = _plain(flat.get("task.headline")), _plain(flat.get("task.higher_is_better"))
    if not isinstance(metric, str):
        return own
    return Headline(metric, higher if isinstance(higher, bool) else higher_is_better(metric))


def common_headline(each: Iterable[Mapping[str, Any]]) -> Headline:
    """That of most of several trials, of the first of equally many."""
    counts = Counter(headline_of(flat) for flat in each)
    return max(counts, key=lambda one: counts[one], default=ACCURACY)


def higher_is_better(metric: str, headline: Headline | None = None) -> bool:
    """Of the headline what it says; else of accuracies and signal-to-noise ratios; of all other metrics less is
    better."""
    if headline and metric == headline.metric:
        return headline.higher
    return metric.endswith(("accuracy", "snr"))


def is_share(metric: str) -> bool:
    """Whether it is a share of examples, written in percent."""
    return metric.endswith(("accuracy", "error"))


def is_nonnegative(metric: str) -> bool:
    """Whether it cannot be negative, as far as its name says: losses, perplexities, variances, seconds, bytes."""
    return metric.startswith(("wire/", "time/")) or metric.endswith(
        ("loss", "perplexity", "bits_per_byte", "variance", "nmse", "norm")
    )


def written(metric: str, value: float, digits: int = 4) -> str:
    """A value of a metric: shares of examples in percent, else so many significant digits, without zeros at the end."""
    return f"{100 * value:.2f}%" if is_share(metric) else f"{value:.{digits}g}"


def written_whole(metric: str, value: float, digits: int = 4) -> str:
    """As `written`, with zeros at the end: 2.340 stands below 2.369."""
    return written(metric, value) if is_share(metric) else f"{value:#.{digits}g}".removesuffix(".")


def written_beside(shown: str, value: float) -> str:
    """A deviation from a number, or the end of its interval, with as many decimals as the number is `shown` with, but
    without its percent sign; of what these would show as 0, two digits."""
    scale = 100 if shown.endswith("%") else 1
    number = shown.removesuffix("%")
    if not math.isfinite(value) or "e" in number:
        return f"{scale * value:.4g}"
    text = f"{scale * value:.{len(number.partition('.')[2])}f}"
    return text if float(text) or not value else f"{scale * value:.2g}"


def three_digits(value: float) -> str:
    """To three significant digits, below a million without an exponent, and with zeros at the end."""
    if not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 999.5:
        return f"{value:#.3g}".removesuffix(".")
    return f"{value:.0f}" if abs(value) < 1e6 else f"{value:.2e}"


def name_of(metric: str) -> str:
    """As one says it: test/accuracy is accuracy, of what is measured while training train/loss is train loss."""
    section, _, name = metric.rpartition("/")
    return name.replace("_", " ") if section == "test" else f"{section} {name}".strip().replace("_", " ")


def _plain(value: Any) -> Any:
    """Of recorded text what it stands for."""
    if value in ("null", "true", "false"):
        return json.loads(value)
    return value
