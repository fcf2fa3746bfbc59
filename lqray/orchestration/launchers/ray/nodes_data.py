"""Whether the nodes of a Ray that was joined have the data of the trials, before one begins that would fail there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.options.data import DataOptions
from lqray.orchestration.launchers.ray.cluster import limit_said
from lqray.training.data_check import from_files, look_at_data
from lqray.training.files import CorruptDataError, MissingDataError

_PATIENCE = 60.0
_log = logging.getLogger(__name__)


def check_data_on_nodes(data: Sequence[DataOptions], need: Mapping[str, float]) -> None:
    """Raise UnfitTrialError for data of lqray's own datasets that no node has which could run a trial; log a warning
    for those that some nodes lack. Where a node does not answer, and where an autoscaler may add nodes, nothing is
    refused. need: of a trial, by kind of resource. Within `ray_cluster`."""
    looked_for = [options for options in data if from_files(options)]
    if not looked_for:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    kinds = [kind for kind in ("CPU", "GPU") if need.get(kind)]
    nodes = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(kind) for kind in kinds)
    }
    look = ray.remote(num_cpus=0, max_retries=0)(problems_here)
    asked = {
        address: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(looked_for)
        for node, address in nodes.items()
    }
    judge({address: _answer(reference) for address, reference in asked.items()})


def problems_here(data: Sequence[DataOptions]) -> list[str]:
    """What is wrong with each of the data on the machine that this runs on; "" for what a trial can read or fetch."""
    return [_problem(options) for options in data]


def _problem(options: DataOptions) -> str:
    try:
        look_at_data(options)
    except (MissingDataError, CorruptDataError, UnfitTrialError, OSError) as error:
        return str(error)
    return ""


def _answer(reference: Any) -> list[str] | None:
    """None where a node does not say, in time, what it has."""
    import ray

    try:
        answer: list[str] = ray.get(reference, timeout=_PATIENCE)
    except Exception as error:  # of the node, of another lqray there, or of Ray: the trials will show
        _log.info("a node was not asked for its data: %s", error)
        return None
    return answer


def judge(answers: Mapping[str, list[str] | None]) -> None:
    """See `check_data_on_nodes`. answers: of `problems_here`, by the address of the node."""
    refused = []
    known = {address: answer for address, answer in answers.items() if answer is not None}
    for place in range(len(next(iter(known.values()), []))):
        said = {address: answer[place] for address, answer in known.items()}
        lacking = [address for address, problem in said.items() if problem]
        if not lacking:
            continue
        where = f"{', '.join(lacking[:10])}{' and others' if len(lacking) > 10 else ''}"
        if len(lacking) == len(answers) and not limit_said():
            refused.append(f"on every node that could run a trial ({where}): {said[lacking[0]]}")
        else:
            _log.warning(
                "%s of %s nodes lack data: trials placed there will fail. On %s: %s",
                *(len(lacking), len(answers), where, " ".join(said[lacking[0]].split())),
            )
    if refused:
        raise UnfitTrialError("\n".join(refused) + "\nNo trial was begun.")
