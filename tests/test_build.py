"""What setup.py builds, leaves out and says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.utils import canonicalize_name

from deploy import lock

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


def names(file: str) -> set[str]:
    lines = (ROOT / file).read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}


def test_the_locks_hold_what_is_needed_each_for_its_purpose_and_no_more():
    for file, text in lock.locks().items():
        wanted = {canonicalize_name(line.partition("==")[0]) for line in text.splitlines() if "==" in line}
        assert names(file) == wanted, f"{file}: run `make lock`"
    runs, tests = names("requirements.lock"), names("requirements-test.lock")
    assert not runs & tests
    assert {"selenium", "moto", "mypy", "pytest", "ruff", "hypothesis"} <= tests
    assert {"psycopg", "psycopg-binary", "flask-wtf", "optuna", "s3fs", "setuptools"} <= runs


def test_every_line_of_a_lock_is_one_version():
    for file in ("requirements.lock", "requirements-test.lock"):
        first, *lines = (ROOT / file).read_text().splitlines()
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.]*", line) for line in lines)
        assert first == "-c requirements.lock" or "==" in first
