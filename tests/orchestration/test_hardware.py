"""What a run says of the machine that it was launched on."""

import os
import platform

import pytest

from lqray.orchestration import hardware
from lqray.orchestration.provenance import provenance
from lqray.store.tags import MACHINE


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """Two cores, and a kernel that says nothing yet."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(hardware, "_CPUS", tmp_path / "cpuinfo")
    monkeypatch.setattr(hardware, "_GPUS", tmp_path / "gpus")
    hardware.machine.cache_clear()
    yield tmp_path
    hardware.machine.cache_clear()


def test_a_machine_is_its_cpu_cores_and_gpus_read_once(proc):
    (proc / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 7763\n\nmodel name\t: AMD EPYC 7763\n")
    for number, name in enumerate(("NVIDIA H100", "NVIDIA A100", "NVIDIA H100")):
        (proc / f"gpus/{number}").mkdir(parents=True)
        (proc / f"gpus/{number}/information").write_text(f"Model: \t\t {name}\nIRQ: \t 1\n")
    said = "AMD EPYC 7763, 2 cores, NVIDIA A100, 2 x NVIDIA H100"
    assert provenance()[MACHINE] == said
    (proc / "cpuinfo").unlink()
    assert hardware.machine() == said


def test_another_system_says_what_python_knows(proc, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert hardware.machine() == "arm, 2 cores"
