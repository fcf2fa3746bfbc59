"""Which rank stalls: asked where a collective times out although every process lives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.distributed_c10d import _get_default_store

_PATIENCE = 3.0  # seconds within which ranks that waited for the same one have noticed, too
_TIMED_OUT = ("timed out", "timeout")


class RankStalledError(RuntimeError):
    """A rank of the group did not come to a collective within its time-out."""


@contextmanager
def naming_stalled_ranks(group: dist.ProcessGroup) -> Iterator[None]:
    """Run what follows; where a collective of it times out, raise RankStalledError, which names the ranks that did not
    come to it, in its place. With all waiting for each other, or the store gone, the error is raised as it is.

    A rank whose collective fails says so in the store, all others are those that were waited for.
    """
    if group.size() == 1:
        yield
        return
    store = _get_default_store().clone()  # type: ignore[attr-defined]  # made while the store is there
    keys = {rank: f"lqray/waited/{group.group_name}/{rank}" for rank in range(group.size())}
    try:
        yield
    except RuntimeError as error:
        stalled = _others(store, keys, group.rank(), str(error).lower())
        if not stalled:
            raise
        which = f"{'ranks' if len(stalled) > 1 else 'rank'} {', '.join(map(str, stalled))} of {group.size()}"
        raise RankStalledError(
            f"{which} did not come to a collective within resources.timeout_seconds, and this rank, {group.rank()}, "
            f"waited there. What was seen here: {str(error).strip().splitlines()[0]}"
        ) from error


def _others(store: Store, keys: dict[int, str], me: int, message: str) -> list[int]:
    """The ranks that no collective has failed on, after one has timed out here; [] where this was no time-out."""
    try:
        store.set(keys[me], "waited")
        if not any(text in message for text in _TIMED_OUT):
            return []
        deadline = time.monotonic() + _PATIENCE
        while True:
            others = [rank for rank, key in keys.items() if not store.check([key])]
            if not others or time.monotonic() > deadline:
                return others
            time.sleep(0.05)
    except RuntimeError:
        return []  # the store is gone, and with it a process: who is lost is asked elsewhere
