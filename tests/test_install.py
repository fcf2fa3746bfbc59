"""What `pip install` brings, from a source tree and from an sdist: built as pip builds it, with nothing but setuptools
beside it, and used outside the tree."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools
import torch

from lqray.kernels import build

ROOT = Path(__file__).parent.parent
NATIVE = pytest.mark.skipif(not build.is_possible(), reason="no C++ compiler here, or LQRAY_NATIVE=0")
_PEP_517 = """
import sys
tools, kind, out = sys.argv[1:]
sys.path.append(tools)
from setuptools import build_meta
print(getattr(build_meta, "build_" + kind)(out))
"""
_IN = """
import runpy, sys
site, name, *sys.argv[1:] = sys.argv[1:]
sys.path[0] = ""
import lqray
assert lqray.__file__.startswith(site), lqray.__file__
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """A folder with setuptools and nothing else: pip's build environment."""
    folder = tmp_path_factory.mktemp("tools")
    found = Path(setuptools.__file__).parents[1]
    for name in ("setuptools", "_distutils_hack", f"setuptools-{setuptools.__version__}.dist-info"):
        (folder / name).symlink_to(found / name)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The files that git knows, as a clone has them."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if not name.startswith(("tests/", "experiments/results/", "benchmarks/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def built(kind: str, tree: Path, tools: Path, out: Path) -> Path:
    """The file that setuptools builds in isolation; `kind` is PEP 517's: sdist, wheel."""
    command = [sys.executable, "-I", "-S", "-c", _PEP_517, str(tools), kind, str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tree, tools, tmp_path_factory):
    """Of an sdist of the tree."""
    out = tmp_path_factory.mktemp("dist")
    with tarfile.open(built("sdist", tree, tools, out)) as archive:
        archive.extractall(out, filter="data")
    (unpacked,) = (one for one in out.iterdir() if one.is_dir())
    return built("wheel", unpacked, tools, out)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder into which pip has installed the wheel."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(folder), str(wheel)], check=True)
    return folder


@pytest.fixture
def lqray(installed, tmp_path):
    """Calls the installed lqray in a folder outside the tree."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LQRAY_")}
        kept |= {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache"), "LQRAY_CUDA": "0"}
        command = [sys.executable, "-m", "lqray", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=kept | environment, capture_output=True, text=True)

    return call


def test_building_wants_no_torch_and_the_wheel_is_for_every_machine(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))
        tags = archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")))
    assert b"Root-Is-Purelib: true" in tags
    assert b"Requires-Dist: torch>=2.10" in metadata


def test_a_wheel_carries_modules_kernels_experiments_and_licence_and_nothing_else(wheel):
    def those(folder: str, *patterns: str) -> set[str]:
        return {str(file.relative_to(ROOT)) for pattern in patterns for file in (ROOT / folder).glob(pattern)}

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    kernels = those("csrc", "*.h", "*.cpp", "*.cu", "*.cuh")
    assert kernels
    carried = kernels | those("experiments", "*.yaml", "README.md")
    expected = those("lqray", "**/*.py") | {f"lqray/_tree/{name}" for name in carried}
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == expected
    assert any(name.endswith("licenses/LICENSE") for name in info)
    assert any(name.endswith("entry_points.txt") for name in info)


def test_init_writes_the_experiments_and_keeps_what_is_there(lqray, tmp_path):
    done = lqray("init")
    assert done.returncode == 0, done.stderr
    quickstart = tmp_path / "experiments/quickstart.yaml"
    assert quickstart.read_bytes() == (ROOT / "experiments/quickstart.yaml").read_bytes()
    shipped = {one.name for one in ROOT.glob("experiments/*.yaml")}
    assert {file.name for file in quickstart.parent.iterdir()} == shipped | {"first.yaml"}
    quickstart.write_text("name: mine\n")
    again = lqray("init")
    assert quickstart.read_text() == "name: mine\n"
    assert f"kept {quickstart.relative_to(tmp_path)}" in again.stderr
    assert "0 experiment files written" in again.stdout
    assert "1 experiment files written" in lqray("init", "--overwrite").stdout
    assert quickstart.read_bytes() == (ROOT / "experiments/quickstart.yaml").read_bytes()


def test_trials_are_those_of_the_tree(lqray, tmp_path):
    shutil.copy(ROOT / "experiments/quickstart.yaml", tmp_path)
    installed = lqray("expand", "quickstart.yaml", "--format", "json")
    assert installed.returncode == 0, installed.stderr
    command = [sys.executable, "-m", "lqray", "expand", "experiments/quickstart.yaml", "--format", "json"]
    here = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert installed.stdout == here


@pytest.mark.processes
@pytest.mark.parametrize(
    ("example", "arguments"),
    [
        ("own-method", ("pytest", "-q", "-p", "no:cacheprovider", "-k", "Rank1")),
        ("own-model-and-data", ("lqray", "train", "spirals.yaml", "--trial", "alq-blocks2")),
        ("own-script", ("torch.distributed.run", "--nproc-per-node", "2", "train.py", "--epochs", "1")),
    ],
)
def test_the_examples_run(installed, tmp_path, example, arguments):
    folder = shutil.copytree(ROOT / "examples" / example, tmp_path / example)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LQRAY_")}
    command = [sys.executable, "-c", _IN, str(installed), *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@NATIVE
def test_doctor_names_the_command_that_builds_the_kernels_and_it_does(lqray, installed):
    before = lqray("doctor").stdout
    assert "reference: " in before
    assert "lqray build-native" in before
    done = lqray("build-native")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (installed / "lqray/_native.abi3.so").is_file()
    assert "native kernels for CUDA skipped (LQRAY_CUDA=0)" in done.stdout
    after = lqray("doctor").stdout
    assert "native (_native.abi3.so: " in after
    assert "bytes on cpu        equal to the reference's" in after
    failed = lqray("build-native", CXX="/bin/false")
    assert failed.returncode == 1
    assert "could not be built" in failed.stdout


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
def test_cuda_kernels_that_were_asked_for_and_cannot_be_built_are_an_error(lqray, installed):
    before = {file: hashlib.sha256(file.read_bytes()).digest() for file in installed.glob("lqray/_native*")}
    done = lqray("build-native", LQRAY_CUDA="1", CXX="/bin/false")
    assert done.returncode == 2
    assert "LQRAY_CUDA=1, but" in done.stderr
    assert {file: hashlib.sha256(file.read_bytes()).digest() for file in installed.glob("lqray/_native*")} == before


@NATIVE
def test_where_torch_is_importable_the_wheel_has_the_kernels(tree, tmp_path):
    """`pip install --no-build-isolation`, as the Makefile does."""
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    environment = os.environ | {"LQRAY_NATIVE": "1", "LQRAY_CUDA": "0", "CXX": str(_compiler(tmp_path))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
    wheel = tmp_path / done.stdout.splitlines()[-1]
    assert "-py3-none-" in wheel.name
    assert "-any" not in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert "lqray/_native.abi3.so" in archive.namelist()
        assert "lqray/_tree/csrc/rounding.h" in archive.namelist()


def _compiler(folder: Path) -> Path:
    """One that writes nothing into the file that it is told to make."""
    file = folder / "cxx"
    file.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n: > "$2"\n')
    file.chmod(0o755)
    return file
