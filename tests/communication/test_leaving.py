"""A process ends well whose last collective has only just ended."""

import subprocess
import sys
from pathlib import Path

import pytest

from lqray.communication import exchange, sharded
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import create
from lqray.quantization.place import Place

ROOT = Path(__file__).resolve().parents[2]
# A tensor that takes its time when gloo's thread, which needs Python for that, lets go of it after the collective. Both
# ranks are here, so that the collective cannot end before nobody else holds the tensor.
SCRIPT = """
import datetime, sys, threading, time, torch, torch.distributed as dist
from lqray.communication.wire.leaving import wait_for_gloo_at_exit

if sys.argv[1] == "waiting":
    wait_for_gloo_at_exit()

class Slow(torch.Tensor):
    def __del__(self):
        end = time.monotonic() + float(sys.argv[2])
        while time.monotonic() < end:
            pass
        print("let go", flush=True)

store, ranks = dist.HashStore(), {}

def join(rank):
    ranks[rank] = dist.ProcessGroupGloo(store, rank, 2, datetime.timedelta(seconds=60))

joining = [threading.Thread(target=join, args=(rank,)) for rank in range(2)]
for each in joining:
    each.start()
for each in joining:
    each.join()

tensor, ended = torch.ones(3).as_subclass(Slow), threading.Event()
work = ranks[0].allreduce([tensor])
work.get_future().add_done_callback(lambda _: ended.set())
del work, tensor  # now the thread of rank 0 alone holds the tensor, and waits for rank 1
ranks[1].allreduce([torch.ones(3)])
ended.wait()
"""


@pytest.mark.processes
@pytest.mark.parametrize(("manner", "seconds"), [("waiting", 0.3), ("leaving", 60)])
def test_python_outlives_the_last_collective(manner, seconds):
    """seconds: that the tensor takes; one that nobody waits for takes longer than Python's end."""
    command = [sys.executable, "-c", SCRIPT, manner, str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if manner == "waiting":
        assert (done.returncode, done.stdout) == (0, "let go\n"), done.stderr
    else:
        assert (done.returncode < 0, done.stdout) == (True, "")  # else the wait is not needed any more


def test_every_exchange_has_python_wait(monkeypatch):
    """At the end of whatever script made it; the wait itself is shown above."""
    asked = []
    for module in (exchange, sharded):
        monkeypatch.setattr(module, "wait_for_gloo_at_exit", lambda: asked.append(1))
    compressor = create("qsgd")
    exchange.GradientExchange(compressor, ExchangeOptions(), None, [1])
    sharded.ShardedExchange(compressor, 1, 1, Place())
    assert len(asked) == 2
