"""Ray Train's loop of one worker of a group. Apart from the group, because the group's driver imports it, too, and has
no use for all that training imports."""

from __future__ import annotations

from typing import Any


def serve(config: dict[str, Any]) -> None:
    """Run the tasks of config["mailbox"] until there are no more. Raises RuntimeError, which ends the group, after a
    trial that may have left it out of step: one that failed otherwise than on all ranks alike."""
    import gc

    import ray.train
    import ray.train.torch

    from lqray.orchestration.launchers.ray.channel import RayLink, arrive, next_task, tell
    from lqray.orchestration.worker.run import run_task

    mailbox = config["mailbox"]
    rank = ray.train.get_context().get_world_rank()
    device = str(ray.train.torch.get_device())
    number = 0
    arrive(mailbox)
    while (task := next_task(mailbox, number)) is not None:
        outcome = run_task(task, rank, device, RayLink(mailbox, task, number) if rank == 0 else None)
        tell(mailbox, number, rank, outcome)
        if outcome.failure and outcome.failure.kind != "non_finite":
            raise RuntimeError(f"rank {rank}: {outcome.failure.error}")
        gc.collect()
        number += 1
