"""The exchange between hosts whose links are limited: what the interface carries is what was counted."""

import json
import sys

import pytest

from tests.testing.shaped_hosts import shaped_hosts, why_not

pytestmark = [pytest.mark.processes, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

BEGINNING = """
import json, os, torch, torch.distributed as dist
from lqray.communication import GradientExchange
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Quantizer
torch.set_num_threads(1)
dist.init_process_group("gloo")
def sent():
    return int(next(line for line in open("/proc/net/dev") if "eth0" in line).split(":")[1].split()[8])
rank = dist.get_rank()
found = {}
"""
PROGRAM = (
    BEGINNING
    + """for reduction in ("all_gather", "scatter_reduce"):
    exchange = GradientExchange(Quantizer.create("alq"), ExchangeOptions(reduction=reduction), dist.group.WORLD, [rank])
    gradient = torch.randn(2**20, generator=torch.Generator().manual_seed(rank))
    exchange.begin_step(0)
    exchange.exchange([gradient], 0).wait()
    dist.barrier()
    before = sent()
    for step in range(1, 4):
        exchange.begin_step(step)
        mean = exchange.exchange([gradient], 0).wait()
    dist.barrier()
    found[reduction] = [sent() - before, 3 * exchange.volume.bytes_sent, float(mean.double().sum())]
os.write(1, f"FOUND {json.dumps(found)}\\n".encode())  # whole, whoever else writes there
os._exit(0)
"""
)


def test_the_interface_carries_what_was_counted():
    with shaped_hosts(2, "100mbit") as hosts:
        said = hosts.run([sys.executable, "-c", PROGRAM], timeout=120)
    found = [json.loads(text.split("FOUND ")[1].splitlines()[0]) for text in said]
    for reduction, (carried, counted, total) in found[0].items():
        # Ethernet, IP and TCP headers take 66 bytes of 1514, acknowledgements of the other direction some more.
        assert counted < carried < 1.10 * counted, reduction
        assert total == found[1][reduction][2]


BY_HOSTS = (
    """
import os, subprocess, sys
if "OF_TWO" not in os.environ:  # two processes on each host
    host = int(os.environ["RANK"])
    both = [os.environ | {"OF_TWO": "", "RANK": str(2 * host + local), "WORLD_SIZE": "4"} for local in (0, 1)]
    started = [subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1]], env=own) for own in both]
    sys.exit(max(one.wait() for one in started))
"""
    + BEGINNING
    + """for name, options in {"quantized": {}, "bf16 within": {"within": "bf16"}, "exact": {"skip": ["*"]}}.items():
    options = ExchangeOptions(reduction="hierarchical", **options)
    exchange = GradientExchange(Quantizer.create("alq"), options, dist.group.WORLD, [rank])
    module = torch.nn.Linear(2**10, 2**10, bias=False)
    model = torch.nn.parallel.DistributedDataParallel(module)
    exchange.attach(model)
    x = torch.randn(4, 2**10, generator=torch.Generator().manual_seed(rank))
    counted = 0
    for step in range(4):
        if step == 1:  # DDP has settled, and has a thread for each connection
            dist.barrier()
            before = sent()
        exchange.begin_step(step)
        model.zero_grad()
        model(x).square().mean().backward()
        counted += exchange.volume.bytes_between_hosts if step else 0
    dist.barrier()
    carried = sent() - before
    both = torch.tensor([counted, exchange.volume.bytes_sent])
    dist.all_reduce(both)
    found[name] = [carried, int(both[0]) // 2, int(both[1]) // 4, float(module.weight.grad.double().sum())]
    exchange.close()
os.write(1, f"FOUND {json.dumps(found)}\\n".encode())  # whole, whoever else writes there
os._exit(0)
"""
)


@pytest.mark.cluster
def test_what_leaves_a_host_of_two_processes_is_what_was_counted():
    """Hosts are found, by their networks; what travels inside one does not pass its interface."""
    with shaped_hosts(2, "100mbit") as hosts:
        said = hosts.run([sys.executable, "-c", BY_HOSTS, BY_HOSTS], timeout=180)
    found = [json.loads(line.removeprefix("FOUND ")) for text in said for line in text.splitlines() if "FOUND" in line]
    assert len(found) == 4
    n = 2**20
    for name, (carried, counted, sent, total) in found[0].items():
        print(f"{name}: carried {carried}, counted {counted} between hosts, {sent} sent by a process and step")
        exact = 3 * (2 * 3 * 4 * n // 4)  # of a ring of four processes, one edge from each host to the other
        payload = 3 * (2 * -(-(4 * (n // 8192) + 3 * n // 8) // 2) + 8)
        assert counted == (exact if name == "exact" else payload), name
        assert counted < carried < 1.10 * counted, name
        assert all(total == other[name][3] for other in found)
