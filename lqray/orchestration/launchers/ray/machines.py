"""The machines of a cluster that was joined, as they come, are drained, and go."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from lqray.orchestration.launchers.contract import Queue
from lqray.orchestration.launchers.ray.room import Machine, Room

_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 30.0
_HEAD, _OWN = "the head of the Ray cluster", "this launch's machine"
_log = logging.getLogger(__name__)


def machines_there() -> list[Machine]:
    """Those that are alive, as the head knows them: two short questions to it. Raises ray.exceptions.RpcError where it
    does not answer; `ray._private.state`, asked the same while a head ends, ends this process (Ray 2.60)."""
    import ray
    from ray._private.worker import global_worker
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    own = ray.get_runtime_context().get_node_id()
    head = global_worker.gcs_client
    drained = head.get_draining_nodes(timeout=_ANSWER_SECONDS)
    return [
        Machine(
            node := one.node_id.hex(),
            name=one.node_manager_address,
            resources=dict(one.resources_total),
            drained=node in drained,
            gone_at=drained.get(node, 0) / 1000,
            needed=_HEAD if one.is_head_node else _OWN if node == own else "",
        )
        for one in head.get_all_node_info(timeout=_ANSWER_SECONDS).values()
        if one.state == GcsNodeInfo.ALIVE
    ]


class MachineWatch:
    """Looks at them once a second, from a thread of its own while the context lasts, and tells `room`; where one that
    the sweep cannot do without is drained, it halts the queue."""

    def __init__(self, room: Room, queue: Queue, look: Callable[[], Sequence[Machine]] = machines_there) -> None:
        self._room, self._queue, self._find = room, queue, look
        self._drained: dict[str, str] = {}
        self._halted = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=5.0)

    def drained(self) -> dict[str, str]:
        """Names of the machines that are being drained, by Ray's ids of them."""
        return self._drained

    def look(self) -> Sequence[Machine]:
        """Once; what was found."""
        machines = self._find()
        self._drained = {one.node: one.name for one in machines if one.drained}
        for one in machines:
            if one.drained and one.needed and not self._halted:
                self._halted = True
                _halt(self._queue, one)
        self._room.see(machines, more=not self._queue.over)
        return machines

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:  # of a head that is away; `RayWatch` tells of that
                _log.debug("the machines of the cluster cannot be asked for: %s", error)


def _halt(queue: Queue, machine: Machine) -> None:
    left = f" and gone in {max(0.0, machine.gone_at - time.time()):.0f} s" if machine.gone_at else ""
    why = f"{machine.needed}, {machine.name}, is being drained"
    _log.error(
        "%s%s, and with it the sweep ends: trials that run write a checkpoint and are recorded as KILLED; run the same "
        "command again, on another cluster, to continue",
        why,
        left,
    )
    queue.halt(why)
