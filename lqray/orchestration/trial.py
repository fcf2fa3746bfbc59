"""One trial on Ray: a Tune trainable that drives a Ray Train run and records it."""

from __future__ import annotations

import math
import traceback
from typing import Any

from lqray.experiment.grid import NamedTrial
from lqray.experiment.schema import Resources, Trial
from lqray.orchestration.placement import processes_of
from lqray.orchestration.tracking import Launch, error_traceback, recorded_run
from lqray.orchestration.worker import WorkerTask, work
from lqray.training.loop import Report


def drive(config: dict[str, Any], launch: Launch, resources: Resources, board: Any, storage: str) -> dict[str, Any]:
    """The Tune trainable. config: {"trial": {"name": ..., "config": Trial.config()}}.

    Runs in an actor of its own, which holds no CPU; the workers hold theirs. Returns {"run_id", "metrics", "error"} as
    the Tune trial's last result: a trial that fails is a result, and only a driver that dies is an error of Tune's.
    """
    named = NamedTrial(config["trial"]["name"], Trial.model_validate(config["trial"]["config"]))
    board.started.remote(named.trial.id)
    run_id = None
    try:
        with recorded_run(launch, named) as run_id:
            metrics = _train(named, launch, resources, board, storage, run_id)
        return {"run_id": run_id, "metrics": metrics, "error": None}
    except Exception as error:
        return {"run_id": run_id, "metrics": {}, "error": error_traceback(error)}


def _train(
    named: NamedTrial, launch: Launch, resources: Resources, board: Any, storage: str, run_id: str
) -> dict[str, float]:
    """The Ray Train run of one trial; returns rank 0's final metrics."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    per_worker: dict[str, float] = {"CPU": resources.cpus_per_process}
    if resources.gpus_per_process:
        per_worker["GPU"] = resources.gpus_per_process
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "task": WorkerTask(named.trial.config(), resources, launch.uri, run_id),
            "board": board,
            "trial_id": named.trial.id,
        },
        torch_config=TorchConfig(timeout_s=math.ceil(resources.timeout_seconds)),
        scaling_config=ScalingConfig(
            num_workers=processes_of(named.trial, resources),
            use_gpu=resources.gpus_per_process > 0,
            resources_per_worker=per_worker,
        ),
        run_config=RunConfig(
            name=f"{named.trial.id}-{launch.launch_id}", storage_path=storage, callbacks=[TuneReportCallback()]
        ),
    )
    metrics: dict[str, float] = trainer.fit().return_value
    return metrics


def _train_worker(config: dict[str, Any]) -> dict[str, float]:
    """Ray Train's loop of one worker; rank 0's return value becomes the result's."""
    import ray.train
    import ray.train.torch

    board, trial_id = config["board"], config["trial_id"]

    def progress(report: Report) -> None:
        board.progressed.remote(trial_id, report)

    def on_evaluation(report: Report) -> None:
        ray.train.report(report.metrics)

    rank = ray.train.get_context().get_world_rank()
    try:
        return work(config["task"], rank, str(ray.train.torch.get_device()), progress, on_evaluation)
    except Exception as error:
        # A traceback does not survive the way to the driver; a note does.
        error.add_note(traceback.format_exc())
        raise
