"""Who encodes and sends: every worker, or every host the exact mean of its workers' gradients.

A host's mean is found by all its processes together: each sums a slice, in float32 and in the order of workers, and all
gather the slices. So it is the same bytes in each of them, and the same bits however many processes there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lqray.communication import streams
from lqray.communication.wire.collectives import gather_now
from lqray.communication.wire.groups import end, part_of
from lqray.communication.wire.placement import hosts_of
from lqray.communication.wire.volume import Volume
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.ops.checks import signed

Tensors = Sequence[Sequence[Tensor]]

_PATIENCE = 5.0  # seconds that `close` waits for the groups to end; they then end by themselves


class Senders:
    """Every worker by itself. group: of the ranks that payloads travel between. seeds: of what is encoded here.
    inside: of the ranks of a host, where several send for it together. beside: how many those are."""

    inside: dist.ProcessGroup | None = None
    beside = 1

    def __init__(self, group: dist.ProcessGroup, seeds: Sequence[int]) -> None:
        self.group = group
        self.seeds = list(seeds)

    def volume(self) -> Volume:
        """That counts a step."""
        return Volume()

    def held_by(self, rank: int, ranks: int) -> range:
        """The senders of a rank, by their numbers among all, where so many ranks share them."""
        each = self.group.size() * len(self.seeds) // ranks
        return range(rank * each, (rank + 1) * each)

    def take(self, tensors: Tensors, volume: Volume) -> Tensors:
        """[worker][tensor] of this process, (n,) each, to [sender][tensor]."""
        return tensors

    def check(self, state: Tensor | None) -> None:
        """Raises ValueError for the state of an exchange that others would go on from."""

    def state(self) -> Tensor | None:
        """What a checkpoint has of it."""
        return None

    def close(self, settle: Callable[[], None]) -> None:
        """Let go of process groups. settle: waits for what a GPU is at; where it does not come to an end, because
        another rank is gone, this goes on without."""


class Hosts(Senders):
    """Every host by its workers' mean: `exchange.reduction: hierarchical`.

    A process may hold several whole hosts, or a host several whole processes, whose payloads are then equal.
    """

    def __init__(self, options: ExchangeOptions, group: dist.ProcessGroup, seeds: Sequence[int]) -> None:
        """seeds: of the workers here; a host's is its first worker's. Collective over `group`. Raises ValueError, on
        all ranks, for hosts that do not hold whole numbers of workers and processes."""
        self.count = options.hosts or hosts_of(group)
        ranks, workers = group.size(), group.size() * len(seeds)
        if workers % self.count or (ranks % self.count and self.count % ranks):
            raise ValueError(
                f"exchange.reduction: hierarchical: found {self.count} hosts for {workers} workers in {ranks} "
                "processes; allowed: a number of hosts (exchange.hosts) that divides the workers and of which the "
                "number of processes (resources.processes) is a multiple or a divisor"
            )
        self._whole = group
        self._share = workers // self.count
        self._narrow = options.within == "bf16"
        self.beside = max(1, ranks // self.count)
        own = torch.tensor([[signed(seed) for seed in seeds]], dtype=torch.int64, device=streams.device_of(group))
        every = [seed % 2**64 for row in gather_now(own, group).tolist() for seed in row]
        here = self.held_by(group.rank(), ranks)
        super().__init__(group, every[:: self._share][here.start : here.stop])
        if self.beside == 1:
            return
        places, hosts = range(self.beside), range(0, ranks, self.beside)
        self.inside = part_of(group, [range(host, host + self.beside) for host in hosts])
        try:
            self.group = part_of(group, [[host + place for host in hosts] for place in places])
        except BaseException:
            end(self.inside)
            raise

    def volume(self) -> Volume:
        """See `Senders.volume`."""
        return Volume(bytes_between_hosts=0)

    def held_by(self, rank: int, ranks: int) -> range:
        """See `Senders.held_by`: hosts."""
        each, beside = max(1, self.count // ranks), max(1, ranks // self.count)
        return range(rank // beside * each, (rank // beside + 1) * each)

    def take(self, tensors: Tensors, volume: Volume) -> Tensors:
        """See `Senders.take`: the means of hosts, of the dtype of the gradients. Collective within the host."""
        if self._share == 1 or not tensors[0]:
            return tensors
        sizes, dtype = [tensor.numel() for tensor in tensors[0]], tensors[0][0].dtype
        travels = torch.bfloat16 if self._narrow else dtype
        rows = torch.stack([torch.cat(list(own)).to(travels) for own in tensors])
        with volume.timed("exchange", rows.device):
            if self.inside is None:
                means = [_mean(each) for each in rows.split(self._share)]
            else:
                means = [self._mean_of_all(rows, self.inside, volume)]
        return [mean.to(dtype).split(sizes) for mean in means]

    def check(self, state: Tensor | None) -> None:
        """See `Senders.check`."""
        if state is not None and int(state) != self.count:
            raise ValueError(
                f"exchange.reduction: hierarchical: found {self.count} hosts, and the state of an exchange of "
                f"{int(state)}: other gradients would be averaged before they are rounded. Allowed: as many hosts as "
                f"before: the same placement; in a script of one's own hosts={int(state)}, too"
            )

    def state(self) -> Tensor | None:
        """See `Senders.state`: the number of hosts."""
        return torch.tensor(self.count)

    def close(self, settle: Callable[[], None]) -> None:
        """See `Senders.close`."""
        if self.inside is None:
            return
        made = [self.group, self.inside]
        self.group, self.inside = self._whole, None

        def leave() -> None:
            settle()
            while made:
                end(made.pop())

        thread = threading.Thread(target=leave, name="lqray-hosts", daemon=True)
        thread.start()
        thread.join(_PATIENCE)

    def _mean_of_all(self, rows: Tensor, inside: dist.ProcessGroup, volume: Volume) -> Tensor:
        """rows: of the workers here (workers, n). The host's mean (n,)."""
        workers, n = rows.shape
        size = -(-n // self.beside)
        padded = torch.nn.functional.pad(rows, (0, size * self.beside - n))
        to = padded.view(workers, self.beside, size).transpose(0, 1).contiguous()
        arrived = torch.empty_like(to)
        each = [workers * size * rows.element_size()] * self.beside
        received, sent = arrived.view(torch.uint8).view(-1), to.view(torch.uint8).view(-1)
        dist.all_to_all_single(received, sent, each, each, group=inside)
        own = _mean(arrived.view(self.beside * workers, size))
        mean = gather_now(own.view(torch.uint8), inside).view(rows.dtype)[:n]
        moved = (self.beside - 1) * size * rows.element_size() * (workers + 1)
        volume.moved(moved, moved, between=0)
        return mean


def senders_of(options: ExchangeOptions, group: dist.ProcessGroup, seeds: Sequence[int]) -> Senders:
    """Who sends with this reduction. seeds: of the workers here. Collective. Raises as `Hosts`."""
    return Hosts(options, group, seeds) if options.reduction == "hierarchical" else Senders(group, seeds)


def _mean(rows: Tensor) -> Tensor:
    """Of (K, n), in the order of rows and in float32: (n,) of their dtype."""
    total = rows[0].to(torch.float32, copy=True)
    for row in rows[1:]:
        total += row
    return total.div_(rows.shape[0]).to(rows.dtype)
