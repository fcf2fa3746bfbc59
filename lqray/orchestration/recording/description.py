"""What a run's description and its axes say of its trial."""

from __future__ import annotations

import colorsys
from collections.abc import Collection

from lqray.experiment.options.budget import budget_text
from lqray.experiment.schema import Trial

_PREFIX = "varied/"
"""Which the UI sorts after test/, time/ and train/: its page begins with charts of the first metrics."""
_EARLIER_PREFIX = "axis/"
_ALWAYS = ("quantizer.bits", "quantizer.bucket_size", "workers")


def trial_description(trial: Trial) -> str:
    """What a trial is, in a line of Markdown."""
    flat = trial.flat()
    method = [f"**{trial.quantizer.method}**"]
    bits = getattr(trial.quantizer, "bits", None)
    if isinstance(bits, tuple):
        method.append(f"bits by parameter ({budget_text(bits)})")
    elif "quantizer.bits" in flat:
        method.append(f"{flat['quantizer.bits']} {'bit' if flat['quantizer.bits'] == 1 else 'bits'}")
    if "quantizer.bucket_size" in flat:
        method.append(f"bucket {flat['quantizer.bucket_size']}")
    if trial.exchange.reduction != "all_gather" and "quantizer.bucket_size" in flat:
        method.append(trial.exchange.reduction)
    method.append(f"seed {trial.seed}")
    schedule = trial.schedule
    length = f"{schedule.iterations} iterations" if schedule.iterations else f"{schedule.epochs} epochs"
    workers = f"{trial.workers} {'worker' if trial.workers == 1 else 'workers'}"
    return f"{', '.join(method)}: {_model(trial)} on {trial.data.name}, {workers}, {length}"


def axis_metrics(trial: Trial, axes: Collection[str]) -> dict[str, float]:
    """Numbers among the axes of a sweep (switches as 0 and 1), and what charts of any sweep are drawn against, by
    name: MLflow filters, orders and plots metrics as numbers, parameters only as text."""
    flat = trial.flat()
    chosen = {key: flat[key] for key in (*axes, *_ALWAYS) if key in flat}
    return {f"{_PREFIX}{key}": float(value) for key, value in chosen.items() if isinstance(value, int | float)}


def has_axes(metrics: Collection[str]) -> bool:
    """Whether a run with these metrics has its axes, as `axis_metrics` calls them or as earlier versions did."""
    return any(key.startswith((_PREFIX, _EARLIER_PREFIX)) for key in metrics)


def run_colour(number: int) -> str:
    """The colour of the number-th run of an experiment in MLflow's charts, which else draw it at random: neighbours
    differ most, hues by the golden angle."""
    shade = colorsys.hls_to_rgb(number * 0.381966 % 1, (0.42, 0.56, 0.34)[number % 3], 0.65)
    return "#" + "".join(f"{round(255 * part):02x}" for part in shade)


def _model(trial: Trial) -> str:
    options = trial.model.model_dump()
    if "architecture" in options:
        return str(options["architecture"])
    sizes = [str(options[key]) for key in ("depth", "width") if key in options]
    layers = options.get("layers") or options.get("channels") or ()
    each = layers if isinstance(layers, tuple) else (layers,)
    return "-".join([trial.model.name, *sizes, *map(str, each)])
