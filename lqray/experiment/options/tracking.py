"""What is recorded, and where."""

from __future__ import annotations

from pydantic import Field

from lqray.experiment.options.section import Section, Word


class Tracking(Section):
    """Where runs are recorded. Not part of a trial."""

    uri: Word | None = Field(default=None, json_schema_extra={"founding": "sqlite:///lqray.db"})
    """An MLflow tracking URI; a relative sqlite path is relative to the directory that `lqray run` is called from, and
    $NAME or ${NAME} is a variable of its environment. By default MLFLOW_TRACKING_URI there, else sqlite:///lqray.db."""
    figures: bool = True
    """Draw the levels of each quantized trial of a minute or more against the density of its last gradient, when it
    ends."""
    log_model: bool = False
    """Keep the weights at the end of each trial as an MLflow model."""
    system_metrics: bool = True
    """Record CPU, memory, disk, network and GPUs of the machine of each trial's first process."""
