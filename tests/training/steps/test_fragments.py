"""Which part of a network is exchanged after which step."""

import itertools

import pytest
import torch
from torch import nn

from lqray.training.steps.fragments import Timetable, _balanced, fragments_of
from lqray.training.steps.statistics import average_buffers
from tests.testing.ranks import run_ranks


def network() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm1d(8, affine=False), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)
    )


def test_fragments_are_whole_layers_in_order_and_every_buffer_is_in_one():
    whole = network()
    for count in range(1, 5):
        fragments = fragments_of(whole, count)
        assert len(fragments) == count
        assert all(fragment.names for fragment in fragments)
        assert [name for one in fragments for name in one.names] == [name for name, _ in whole.named_parameters()]
        assert [name for one in fragments for name in one.buffers] == [name for name, _ in whole.named_buffers()]
    assert fragments_of(whole, 2)[1].names == ("4.weight", "4.bias", "5.weight", "5.bias")
    whole[5].weight = whole[4].weight  # tied: it is the first layer's alone
    assert fragments_of(whole, 4)[3].names == ("5.bias",)
    whole[1].requires_grad_(False)
    assert fragments_of(whole, 1)[0].names == ("2.weight", "2.bias", "4.weight", "4.bias", "5.bias")
    with pytest.raises(ValueError, match="4, of a network that has 3 layers"):
        fragments_of(whole, 4)


@pytest.mark.parametrize(
    ("sizes", "count"), [([5, 5, 5, 5], 2), ([100, 1, 1, 1], 3), ([1, 1, 1, 100], 3), ([7] * 9, 4)]
)
def test_groups_are_balanced_and_none_is_empty(sizes, count):
    groups = _balanced(sizes, count)
    assert [place for group in groups for place in group] == list(range(len(sizes)))
    held = [sum(sizes[place] for place in group) for group in groups]
    assert len(held) == count
    assert min(held) > 0
    assert max(held) <= max(max(sizes), 2 * sum(sizes) / count)


@pytest.mark.parametrize(("every", "fragments"), [(1, 1), (4, 1), (5, 2), (6, 6), (7, 3)])
def test_each_fragment_has_its_turn_once_in_a_round(every, fragments):
    table = Timetable(every, fragments, 1000)
    starts = {done: table.due(done) for done in range(1, 100)}
    assert all(len(due) <= 1 for due in starts.values())
    for number in range(fragments):
        own = [done for done, due in starts.items() if number in due]
        assert own[0] <= every
        assert all(after - one == every for one, after in itertools.pairwise(own))
    for done in range(1, 100):
        before = [other for other in range(1, done + 1) if starts[other]]
        assert table.exchanges(done) == len(before)
        assert table.last(done) == max(before, default=0)
    assert table.due(1000) == list(range(fragments))


def averaged(rank: int, world: int) -> dict[str, torch.Tensor]:
    import torch.distributed as dist

    workers = [network() for _ in range(4 // world)]
    for place, worker in enumerate(workers):
        with torch.no_grad():
            for buffer in worker.buffers():
                buffer.fill_(1 + 0.1 * (rank * len(workers) + place) if buffer.is_floating_point() else rank)
    shared = network()
    average_buffers([name for name, _ in shared.named_buffers()], workers, shared, dist.group.WORLD)
    for worker in workers:
        for name, buffer in worker.named_buffers():
            assert torch.equal(buffer, shared.get_buffer(name))
    return {name: buffer.tolist() for name, buffer in shared.named_buffers()}


@pytest.mark.processes
def test_statistics_are_means_over_workers_the_same_bits_in_any_processes():
    found = [one for world in (1, 2, 4) for one in run_ranks(averaged, world, world)]
    assert all(one == found[0] for one in found)
    assert found[0]["2.running_mean"] == [pytest.approx(1.15)] * 8
    assert found[0]["2.num_batches_tracked"] == 0
