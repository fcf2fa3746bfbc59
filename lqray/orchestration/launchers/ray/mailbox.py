"""A worker group's mailbox: an actor that keeps what others wrote, unread.

What it keeps are bytes: an actor that knew their types would import all that training does, for seconds, before a trial
begins. `lqray.orchestration.launchers.ray.channel` writes and reads them. Imports nothing of lqray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

Event = tuple[int, int, bytes]
"""Number of the task, rank, and what happened there."""

Start = tuple[str, int]
"""A trial's id, and which start of it by this launch."""

Answer = tuple[int, bool]
"""How many of a trial's points are recorded, and whether it shall stop."""


class Mailbox:
    """Tasks on their way to a group, in order, and what its ranks say of them; an asyncio actor."""

    def __init__(self) -> None:
        self._tasks: list[bytes | None] = []
        self._more = asyncio.Condition()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._updates: dict[Start, dict[int, bytes]] = {}
        self._answers: dict[str, Answer] = {}
        self._halted: set[Start] = set()
        self._nodes: set[str] = set()
        self._drained: dict[str, str] = {}

    async def arrive(self, node: str) -> None:
        """From a rank: it is on this node."""
        self._nodes.add(node)

    async def put(self, task: bytes | None) -> int | None:
        """A task for the group, or None: it shall end. Returns the task's number; None where it is not taken: a node
        of the group is being drained."""
        if task is not None and self._leaves():
            return None
        async with self._more:
            self._tasks.append(task)
            self._more.notify_all()
            return len(self._tasks) - 1

    async def task(self, number: int) -> bytes | None:
        """Task of a number, as soon as there is one."""
        async with self._more:
            await self._more.wait_for(lambda: len(self._tasks) > number)
            return self._tasks[number]

    async def tell(self, event: Event) -> None:
        """From a rank."""
        await self._events.put(event)

    async def hear(self, seconds: float) -> Event | None:
        """The next event; None after so many seconds."""
        if not self._events.empty():
            return self._events.get_nowait()
        try:
            return await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None

    async def post(self, start: Start, number: int, update: bytes) -> Answer:
        """From rank 0 of a trial: an update of it, numbered from 1."""
        self._updates.setdefault(start, {})[number] = update
        recorded, stop = self._answers.get(start[0], (0, False))
        return recorded, stop or start in self._halted or bool(self._leaves())

    async def halt(self, start: Start) -> None:
        """From the driver of a trial that Tune has stopped."""
        self._halted.add(start)

    async def exchange(
        self, answers: Mapping[str, Answer], taken: Mapping[Start, int], drained: Mapping[str, str]
    ) -> list[tuple[int, bytes]]:
        """From the launcher: its answers to trials that run, the number of the last update of each start that it has,
        and the nodes that are being drained, with their names; for all updates that it has not."""
        self._answers, self._drained = dict(answers), dict(drained)
        for start, last in taken.items():
            kept = self._updates.get(start, {})
            for number in [number for number in kept if number <= last]:
                del kept[number]
        self._updates = {start: kept for start, kept in self._updates.items() if kept}
        return [one for kept in self._updates.values() for one in sorted(kept.items())]

    async def rest(self, start: Start) -> tuple[list[tuple[int, bytes]], str]:
        """From the driver of a trial that ended: the updates that the launcher may not have, which are forgotten here,
        and the name of a node of the group that is being drained, or ""."""
        return sorted(self._updates.pop(start, {}).items()), self._leaves()

    def _leaves(self) -> str:
        """The name of a node of the group that is being drained, or ""."""
        return next((name for node, name in self._drained.items() if node in self._nodes), "")
