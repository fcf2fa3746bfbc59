"""A process ends well whose last collective has only just ended."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A tensor that takes its time when gloo's thread, which needs Python for that, lets go of it after the collective.
SCRIPT = """
import os, sys, threading, time, torch, torch.distributed as dist
from torch.distributed.distributed_c10d import AllreduceCoalescedOptions
from lqray.communication.wire.leaving import wait_for_gloo_at_exit

if sys.argv[2] == "waiting":
    wait_for_gloo_at_exit()

class Slow(torch.Tensor):
    def __del__(self):
        end = time.monotonic() + float(sys.argv[3])
        while time.monotonic() < end:
            pass
        print("let go", flush=True)

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
tensor, ended = torch.ones(3).as_subclass(Slow), threading.Event()
work = dist.group.WORLD.allreduce_coalesced([tensor], AllreduceCoalescedOptions())
future = work.get_future()
future.add_done_callback(lambda _: ended.set())
del work, tensor, future
ended.wait()
"""


@pytest.mark.processes
@pytest.mark.parametrize(("manner", "seconds"), [("waiting", 0.3), ("leaving", 60)])
def test_python_outlives_the_last_collective(tmp_path, manner, seconds):
    """seconds: that the tensor takes; one that nobody waits for takes longer than Python's end."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "rendezvous"), manner, str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if manner == "waiting":
        assert (done.returncode, done.stdout) == (0, "let go\n"), done.stderr
    else:
        assert "terminate called without an active exception" in done.stderr  # else the wait is not needed any more
