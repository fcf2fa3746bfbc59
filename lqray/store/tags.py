"""Tags of lqray's runs, and of their experiment. The text of its file is `lqray.experiment.plan`'s; those of the run
that holds claims are `lqray.orchestration.recording.claims`'s."""

from __future__ import annotations

# What a run is.
TRIAL_ID = "lqray.trial_id"
TRIAL_NAME = "lqray.trial_name"
METHOD = "lqray.method"
ATTEMPT = "lqray.attempt"
"""Counts the runs of a trial, from 1."""
FOLDER = "lqray.folder"
"""Of its checkpoints and logs: an absolute path or a URI."""
LAUNCH = "lqray.launch"
"""The launch that began it, or went on with it last."""
MARK = "lqray.mark"
"""Drawn for each run: by it a run is found whose making was never answered."""
HOLDER = "lqray.holder"
"""Which process claimed its trial."""
LAUNCH_FILES = "lqray.launch_files"
"""The run that has the files of the launch, where not every run has them."""

# How it stands.
PROGRESS = "lqray.progress"
"""Its last word, as JSON: iteration, iterations, rate, host, time."""
EARLY = "lqray.early"
"""Why early stopping ended it, which it stays."""
STOPPED = "lqray.stopped"
"""Who or what else ended it; the next launch continues it."""
ERROR = "lqray.error"
FAILURE = "lqray.failure"
"""The kind of its failure (`lqray.orchestration.failures.Kind`)."""
FAILED_HOST = "lqray.failed_host"
FAILED_RANK = "lqray.failed_rank"
NAN_METRICS = "lqray.nan_metrics"
"""Metrics, separated by commas, that ended as NaN: MLflow is not told of NaN."""
MODEL_STATE = "lqray.model"
"""Of a run whose model is wanted: pending, model (its name, once it is there) or failed: why."""

# Where it comes from.
COMMAND = "lqray.command"
HOST = "lqray.host"
MACHINE = "lqray.machine"
"""Of that host: CPU model, cores, GPUs."""
SUBMITTED_FROM = "lqray.submitted_from"
CODE = "lqray.code"
"""Digest of lqray's Python files."""
PARTS = "lqray.parts"
"""Digest of the source files of the parts that its trial chose (`lqray.experiment.part_files`); of a run that was
continued with others, all of them, in order, with commas."""
DATA = "lqray.data"
"""Digest of the files that its data were read from (`lqray.training.data_files`), likewise, where it is known."""
GIT_COMMIT = "lqray.git_commit"
GIT_DIRTY = "lqray.git_dirty"
VERSION = "lqray.version"
PYTHON = "lqray.python"
TORCH, RAY, MLFLOW = "lqray.torch", "lqray.ray", "lqray.mlflow"

# Of an experiment.
STOP = "lqray.stop"
"""Requests of `lqray stop`: this, or this with a dot and a number of their own."""

# What the MLflow UI heeds, or shows beside what was recorded.
KIND, MODEL_TRAINING = "mlflow.experimentKind", "custom_model_development"
"""Of an experiment: which of the UI's modes it is shown in."""
UNLISTED = "mlflow.experiment.isGateway"
"""Of an experiment that the UI's list leaves out: MLflow 3.17 does so with those that it made itself."""
DIFFERENCE = "difference/from_baseline"
"""A metric: by how much a finished run's headline differs from that of the baseline's run with its seed."""
GROUP = "lqray.group"
"""What a run's group of seeds is called there."""
