"""What setup.py builds, leaves out and says."""

import os
import re
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


def test_cuda_asked_for_without_native_kernels_is_an_error(tmp_path):
    done = setup("build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}", LQRAY_NATIVE="0", LQRAY_CUDA="1")
    assert done.returncode != 0
    assert "LQRAY_CUDA=1, but LQRAY_NATIVE=0" in done.stderr


@pytest.fixture
def cuda(tmp_path):
    """A torch for CUDA 13.0 and an nvcc that compiles nothing."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("class version:\n    cuda = '13.0'\n")
    (tmp_path / "cuda/bin").mkdir(parents=True)
    nvcc = tmp_path / "cuda/bin/nvcc"
    nvcc.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "--version) echo Cuda compilation tools, release $RELEASE ;;\n"
        "--list-gpu-code) echo $KNOWN ;;\n"
        "--dryrun) ;;\n"
        "*) exit 1 ;;\nesac\n"
    )
    nvcc.chmod(0o755)
    compiler = tmp_path / "cxx"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n: > "$2"\n')
    compiler.chmod(0o755)
    build = ("build_ext", f"--build-lib={tmp_path}/out", f"--build-temp={tmp_path}/out")

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        machine = {"CUDA_HOME": str(tmp_path / "cuda"), "PYTHONPATH": str(tmp_path), "CXX": str(compiler)}
        usual = {
            "LQRAY_NATIVE": "1",
            "LQRAY_CUDA": "",
            "TORCH_CUDA_ARCH_LIST": "",
            "RELEASE": "13.0, V",
            "KNOWN": "sm_80",
        }
        return setup(*build, **machine | usual | environment)

    return run


@pytest.mark.parametrize(
    ("known", "chosen"),
    [
        ("sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_103 sm_120", ["75", "80", "90", "100", "120"]),
        ("sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_89 sm_90 sm_90a", ["70", "75", "80", "90"]),
    ],
    ids=["CUDA 13.0", "CUDA 12.6"],
)
def test_kernels_are_for_every_architecture_that_nvcc_knows_and_later_ones(cuda, known, chosen):
    said = cuda(KNOWN=known).stderr
    codes = [f"[sm_{number}]" for number in chosen[:-1]] + [f"[sm_{chosen[-1]},compute_{chosen[-1]}]"]
    assert re.findall(r"-gencode arch=compute_(\d+),code=(\S+)", said) == list(zip(chosen, codes, strict=True))


def test_chosen_architectures_are_those_alone(cuda):
    said = cuda(TORCH_CUDA_ARCH_LIST="8.9;9.0a+PTX").stderr
    assert re.findall(r"code=(\S+)", said) == ["[sm_89]", "[sm_90a,compute_90a]"]


def test_cuda_kernels_that_cannot_be_built_leave_the_cpu_its_own_unless_they_are_asked_for(cuda):
    done = cuda()
    assert done.returncode == 0
    assert "built native kernels for CPU" in done.stderr
    assert "native kernels for CUDA could not be built" in done.stderr
    assert cuda(LQRAY_CUDA="1").returncode != 0


def test_an_nvcc_of_another_cuda_than_torchs_is_not_used(cuda):
    assert "is CUDA 12, and torch is built for CUDA 13.0" in cuda(RELEASE="12.9, V").stderr
    done = cuda(RELEASE="12.9, V", LQRAY_CUDA="1")
    assert done.returncode != 0
    assert "LQRAY_CUDA=1, but" in done.stderr


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
