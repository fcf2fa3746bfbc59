"""The exchange between hosts whose links are limited: what the interface carries is what was counted."""

import json
import sys

import pytest

from tests.testing.shaped_hosts import shaped_hosts, why_not

pytestmark = [pytest.mark.processes, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

PROGRAM = """
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
for reduction in ("all_gather", "scatter_reduce"):
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
print("FOUND", json.dumps(found), flush=True)
os._exit(0)
"""


def test_the_interface_carries_what_was_counted():
    with shaped_hosts(2, "100mbit") as hosts:
        said = hosts.run([sys.executable, "-c", PROGRAM], timeout=120)
    found = [json.loads(text.split("FOUND ")[1].splitlines()[0]) for text in said]
    for reduction, (carried, counted, total) in found[0].items():
        # Ethernet, IP and TCP headers take 66 bytes of 1514, acknowledgements of the other direction some more.
        assert counted < carried < 1.10 * counted, reduction
        assert total == found[1][reduction][2]
