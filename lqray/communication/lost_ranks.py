"""Which rank is gone: asked where a collective fails, since its own error names an address at best."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

_PATIENCE = 3.0  # seconds that a rank which lives has to say so


class RankLostError(RuntimeError):
    """A rank of the group has ended, or cannot be reached, while others wait for it in a collective."""


@contextmanager
def naming_lost_ranks(group: dist.ProcessGroup) -> Iterator[None]:
    """Run what follows; where it raises RuntimeError, ask all ranks of `group` whether they live, and raise
    RankLostError, which names those that do not, in its place. With all alive the error is raised as it is.

    Every rank answers from a thread of its own, also one that waits in a collective.
    """
    if group.size() == 1:
        yield
        return
    call = _RollCall(group)
    try:
        yield
    except RuntimeError as error:
        if lost := call.missing():
            raise RankLostError(
                f"{lost} of {group.size()} ended or cannot be reached, and this rank, {group.rank()}, waited for it in "
                f"a collective. See its own log for the reason. What was seen here: {_first_line(error)}"
            ) from error
        raise
    finally:
        call.close()


_calls = itertools.count()


class _RollCall:
    """Questions and answers in the process group's store."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._ranks = dist.get_process_group_ranks(group)
        self._me = dist.get_rank()
        # A group may see one trial after the other; what the ranks said in an earlier one is void.
        name = f"lqray/roll_call/{group.group_name}/{next(_calls)}"
        self._question, self._answers, self._verdict = f"{name}/question", f"{name}/here", f"{name}/lost"
        self._over = threading.Event()
        # A connection for each thread, made while the store is there: a new one to a store that is gone takes minutes.
        store = _get_default_store()
        self._asking, self._answering = store.clone(), store.clone()  # type: ignore[attr-defined]
        self._listener = threading.Thread(target=self._answer, daemon=True, name="lqray-roll-call")
        self._listener.start()

    def missing(self) -> str:
        """The ranks that do not answer, or that somebody else found before; "" when all do."""
        try:
            store = self._asking
            store.set(self._question, "?")
            store.set(f"{self._answers}/{self._me}", "here")
            deadline = time.monotonic() + _PATIENCE
            absent = [rank for rank in self._ranks if not store.check([f"{self._answers}/{rank}"])]
            while absent and time.monotonic() < deadline:
                time.sleep(0.05)
                absent = [rank for rank in absent if not store.check([f"{self._answers}/{rank}"])]
            found = ", ".join(str(self._ranks.index(rank)) for rank in absent)
            # The first to find out says it for all: those that leave because of it are not lost on their own account.
            if found:
                found = store.compare_set(self._verdict, "", found).decode()
            elif store.check([self._verdict]):
                found = store.get(self._verdict).decode()
            return f"rank {found}" if found else ""
        except RuntimeError:
            return "rank 0, which holds the group's store," if self._me != 0 else ""

    def close(self) -> None:
        """Stop answering."""
        self._over.set()

    def _answer(self) -> None:
        try:
            while not self._over.wait(0.2):
                if self._answering.check([self._question]):
                    self._answering.set(f"{self._answers}/{self._me}", "here")
                    return
        except RuntimeError:
            return  # the store is gone, and with it the run


def _first_line(error: RuntimeError) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
