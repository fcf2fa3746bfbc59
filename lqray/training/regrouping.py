"""A checkpoint of N processes, continued by M that share the same workers: as long as all that is exchanged is
quantized, a run is the same bits however many there are, so it may go on in another number of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lqray.quantization.regrouping import RegroupingError
from lqray.training.checkpoint import CheckpointError
from lqray.training.steps.setting import Steps
from lqray.training.wires import Wires

__all__ = ["own_state"]


def own_state(
    owns: Sequence[Mapping[str, Any]], stepping: Steps, wires: Wires, done: int, where: str
) -> dict[str, Any]:
    """What this process is to load after `done` steps, of each process's own in a checkpoint. where: it lies. Raises
    CheckpointError where another number of processes would come to other bits."""
    before, now = len(owns), wires.group.size()
    if before == now:
        return dict(owns[wires.group.rank()])
    try:
        found = stepping.regrouped([{key: own[key] for key in own if key != "bytes_sent"} for own in owns], done)
    except RegroupingError as error:
        raise CheckpointError(
            f"the checkpoint in {where} was written by {_processes(before)}, now there {'is' if now == 1 else 'are'} "
            f"{now}, with which it would come to other bits: {error}. Allowed: as many as before (resources.processes: "
            f"{before}); a new attempt, in a folder of its own, may have any number"
        ) from error
    return found | {"bytes_sent": wires.by_workers(before).first(owns).get("bytes_sent")}


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"
