"""What `lqray doctor` finds on this machine, and what it says of that."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import torch

from lqray import ops
from lqray.orchestration.doctor import local


def lqray(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lqray", *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


def test_doctor_finds_nothing_broken_here(tmp_path):
    done = lqray("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "operators on cpu" in done.stdout
    assert "bytes on cpu        equal" in done.stdout
    assert "BROKEN" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_what_is_broken_and_the_remedy(tmp_path):
    environment = {"LQRAY_NATIVE": "0", "RAY_ADDRESS": "127.0.0.1:1"}
    done = lqray("doctor", "--uri", "sqlite:////nowhere/lqray.db", cwd=tmp_path, **environment)
    assert done.returncode == 1
    broken = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("BROKEN")]
    assert broken == ["Ray", "MLflow"]
    assert done.stdout.count("remedy:") == 3
    assert "slow    operators on cpu    reference" in done.stdout


def test_doctor_says_for_each_kind_of_gpu_which_library_serves_it(monkeypatch):
    kernels = ops.native.CudaKernels(Path("/lqray/_native_cuda.abi3.so"), ("sm_75", "sm_80"), None)
    monkeypatch.setattr(ops, "loaded", dataclasses.replace(ops.loaded, cuda=kernels))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(7, 5), (7, 0), (7, 0)][index])
    monkeypatch.setattr(ops.native, "backend", lambda _, device: "reference" if device == "cuda:1" else "native")
    monkeypatch.setattr(local, "_self_test", lambda device: local.Finding(f"bytes on {device}", "ok", "not looked at"))
    found = {finding.what: finding for finding in local.operator_findings()}
    assert {what for what in found if "cuda" in what and "operators" in what} == {
        "operators on cuda:0",
        "operators on cuda:1",
    }
    assert found["operators on cuda:0"].found.startswith("native (_native_cuda.abi3.so: sm_75 sm_80): bucket_norms")
    assert found["operators on cuda:1"].state == "slow"
    assert "(no kernels for it in _native_cuda.abi3.so: sm_75 sm_80)" in found["operators on cuda:1"].found
    assert "TORCH_CUDA_ARCH_LIST" in found["operators on cuda:1"].remedy


def test_doctor_says_where_there_is_no_gpu_whether_there_are_kernels_for_one(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for kernels, said in (
        (ops.native.CudaKernels(Path("/lqray/_native_cuda.abi3.so"), ("sm_75",), None), "_native_cuda.abi3.so: sm_75"),
        (ops.native.CudaKernels(None, (), "it does not load"), "it does not load"),
    ):
        monkeypatch.setattr(ops, "loaded", dataclasses.replace(ops.loaded, cuda=kernels))
        first = next(local.operator_findings())
        assert (first.what, first.found) == ("CUDA kernels", f"{said}; no GPU here")
