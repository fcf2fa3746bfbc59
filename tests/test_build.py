"""What setup.py builds, leaves out and says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def setup(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LQRAY_NATIVE": "0"}, "skipped (LQRAY_NATIVE=0)"),
        ({"LQRAY_NATIVE": "1", "LQRAY_CUDA": "0", "CXX": "/bin/false"}, "operators run on their reference"),
    ],
)
def test_a_machine_that_cannot_build_installs_without_the_library(tmp_path, environment, said):
    done = setup("build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}", **environment)
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
def test_cuda_asked_for_and_impossible_is_an_error(tmp_path):
    build = ("build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}")
    done = setup(*build, LQRAY_NATIVE="1", LQRAY_CUDA="1")
    assert done.returncode != 0
    assert "LQRAY_CUDA=1, but" in done.stderr
    assert "torch is built for the CPU only" in done.stderr


@pytest.mark.skipif(not shutil.which("nvcc") and "CUDA_HOME" not in os.environ, reason="no nvcc here")
def test_cuda_kernels_compile_without_warnings_and_spills_and_link():
    done = setup("cuda_check")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kernels without spills" in done.stderr
