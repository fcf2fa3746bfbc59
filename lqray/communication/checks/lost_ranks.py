"""Which rank is gone: asked where a collective fails, since its own error names an address at best."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.distributed_c10d import _get_default_store

_PATIENCE = 3.0  # seconds that a rank which lives has to say so


class RankLostError(RuntimeError):
    """A rank of the group has ended, or cannot be reached, while others wait for it in a collective."""


class RaisedByAllError(RuntimeError):
    """Something that all ranks see, each for itself, in the same step: none of them is lost to the others."""


@contextmanager
def naming_lost_ranks(group: dist.ProcessGroup) -> Iterator[None]:
    """Run what follows; where it raises RuntimeError, ask all ranks of `group` whether they live, and raise
    RankLostError, which names those that do not, in its place. With all alive the error is raised as it is.

    Every rank answers from a thread of its own, also one that waits in a collective, and one that has come to the end
    of what follows counts as alive, and so does one that raised RaisedByAllError: it may be gone before another, which
    raises the same, would have asked it.
    """
    if group.size() == 1:
        yield
        return
    call = _RollCall(group)
    try:
        yield
        call.leave()
    except RaisedByAllError:
        call.leave()
        raise
    except RuntimeError as error:
        if lost := call.missing():
            raise RankLostError(
                f"{lost} ended or cannot be reached, and this rank, {group.rank()} of {group.size()}, waited for it in "
                f"a collective. See its own log for the reason. What was seen here: {_first_line(error)}"
            ) from error
        raise
    finally:
        call.close()


class _RollCall:
    """Questions and answers in the store of all processes, under the name of the group.

    Questions are numbered in the store, as are comings and goings, and an answer is the number of a question. A group
    may see one trial after the other, and some ranks more of them than others: so no process counts for itself.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._me, self._ranks = group.rank(), dist.get_process_group_ranks(group)
        self._name = f"lqray/roll_call/{group.group_name}"
        self._over = threading.Event()
        # A connection for each thread, made while the store is there: a new one to a store that is gone takes minutes.
        store = _get_default_store()
        self._asking, self._answering = store.clone(), store.clone()  # type: ignore[attr-defined]
        self._port = _port_of(store)
        self._holder: int | None = None
        self._heard = ""
        self._before = self._asking.add(self._key("questions"), 0)
        self._came = self._asking.add(self._key("comings and goings"), 1)
        self._asking.set(self._key("came", self._me), str(self._came))
        if self._port is not None and _listens(self._port):
            self._asking.set(self._key("holder"), str(self._me))
        self._listener = threading.Thread(target=self._answer, daemon=True, name="lqray-roll-call")
        self._listener.start()

    def missing(self) -> str:
        """The ranks that do not answer, or that somebody else found before; "" when all do."""
        try:
            store = self._asking
            number = store.add(self._key("questions"), 1)
            store.set(self._key("question", number), "?")
            store.set(self._key("here", self._me), str(number))
            deadline = time.monotonic() + _PATIENCE
            absent = [rank for rank in range(len(self._ranks)) if not self._accounts_for_itself(rank, number)]
            while absent and time.monotonic() < deadline:
                time.sleep(0.05)
                absent = [rank for rank in absent if not self._accounts_for_itself(rank, number)]
            # The first to find out says it for all: those that leave because of it are not lost on their own account.
            if said := self._said_of_lost(store, number):
                return said
            if not absent:
                return ""
            # A rank that has not come so far yet, as it reads its data, waits for the lost one as well.
            begun = [rank for rank in absent if self._number("came", rank) > self._number("left", rank)]
            found = f"rank {', '.join(map(str, begun or absent))} of {len(self._ranks)}"
            store.set(self._key("lost", number), found)
            return found
        except RuntimeError:  # somebody who waited for the lost one may have left, and taken the store along
            return self._heard or self._holder_of_the_store()

    def leave(self) -> None:
        """Say that this rank came to the end of it, so that nobody takes it for lost."""
        try:
            self._asking.set(self._key("left", self._me), str(self._asking.add(self._key("comings and goings"), 1)))
        except RuntimeError:
            return  # the store's process has come to its end before, and with it all questions

    def close(self) -> None:
        """Stop answering."""
        self._over.set()
        self._listener.join(1.0)

    def _key(self, what: str, number: int | None = None) -> str:
        return f"{self._name}/{what}" if number is None else f"{self._name}/{what}/{number}"

    def _said_of_lost(self, store: Store, number: int) -> str:
        """Who is lost, as was found when somebody asked before that question; "" where nobody has found out."""
        for earlier in range(self._before + 1, number):
            if store.check([self._key("lost", earlier)]):
                return str(store.get(self._key("lost", earlier)), "utf-8")
        return ""

    def _number(self, what: str, rank: int) -> int:
        """What a rank has said last; -1 before."""
        key = self._key(what, rank)
        return int(self._asking.get(key)) if self._asking.check([key]) else -1

    def _accounts_for_itself(self, rank: int, question: int) -> bool:
        return self._number("here", rank) >= question or self._number("left", rank) > self._came

    def _answer(self) -> None:
        store, next_question = self._answering, self._before + 1
        try:
            while not self._over.wait(0.2):
                if self._holder is None and store.check([self._key("holder")]):
                    self._holder = int(store.get(self._key("holder")))
                while store.check([self._key("question", next_question)]):
                    store.set(self._key("here", self._me), str(next_question))
                    next_question += 1
                self._heard = self._heard or self._said_of_lost(store, next_question)
        except RuntimeError:
            return  # the store is gone, and with it the run

    def _holder_of_the_store(self) -> str:
        """Who is gone when the store is: whoever was seen to hold it, else whom torch makes hold it."""
        if self._holder == self._me:
            return ""
        if self._holder is not None:
            return f"rank {self._holder} of {len(self._ranks)}, which holds the group's store,"
        by_environment = self._port is not None and os.environ.get("MASTER_PORT") == str(self._port)
        if not by_environment or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            where = f" at port {self._port}" if self._port is not None else ""
            return f"the process that holds the group's store{where}"
        if 0 in self._ranks:
            return f"rank {self._ranks.index(0)} of {len(self._ranks)}, which holds the group's store,"
        return "rank 0 of all processes, which is not of this group but holds its store,"


def _port_of(store: Store) -> int | None:
    """Where a store over TCP is served; None for others."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return int(store.port) if isinstance(store, TCPStore) else None


def _listens(port: int) -> bool:
    """Whether this process accepts connections at a port; False where the system does not say."""
    try:
        own = {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
        tables = [Path("/proc/self/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    except OSError:
        return False
    listening = "0A"
    return any(
        fields[3] == listening and int(fields[1].rpartition(":")[2], 16) == port and f"socket:[{fields[9]}]" in own
        for fields in (line.split() for table in tables for line in table)
    )


def _first_line(error: RuntimeError) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
