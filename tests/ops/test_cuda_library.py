"""The library of CUDA kernels, on machines without a GPU: how it links, loads or not, and which GPUs it serves."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lqray import ops
from lqray.ops import devices

ROOT = Path(__file__).resolve().parents[2]
NATIVE = pytest.mark.skipif(ops.loaded.path is None, reason=f"no native library here: {ops.loaded.reason}")
NVCC = pytest.mark.skipif(
    not shutil.which("nvcc") and "CUDA_HOME" not in os.environ and os.environ.get("LQRAY_CUDA") != "1",
    reason="no nvcc here (with LQRAY_CUDA=1 a failure)",
)
DEFAULT = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_120")

# Tensors that say where they are and hold nothing, which is enough for a kernel's checks, and what a kernel answers.
ELSEWHERE = """
import torch
from lqray import ops

class Elsewhere(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, function, *rest):
        raise AssertionError("the reference computes")

def on(device, *shape):
    return torch.Tensor._make_wrapper_subclass(Elsewhere, shape, dtype=torch.float32, device=device)

def answer(operator, *arguments):
    kernel = torch.library.get_kernel(f"lqray::{operator}", "CUDA")
    try:
        kernel.call_boxed(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *arguments)
    except Exception as error:
        print(str(error).splitlines()[0])
"""


ARCHITECTURES = ["sm_75", "sm_90", "compute_90"] if os.environ.get("LQRAY_TEST_SLOW") else ["sm_75", "compute_75"]
"""Each takes half a minute."""


@pytest.fixture(scope="module")
def checked():
    """What cuda_check says."""
    listed = "7.5;9.0+PTX" if "sm_90" in ARCHITECTURES else "7.5+PTX"
    environment = os.environ | {"TORCH_CUDA_ARCH_LIST": listed}
    command = [sys.executable, "setup.py", "-q", "cuda_check"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def linked(checked):
    return ROOT / "build/cuda_check/_native_cuda.abi3.so"


@pytest.fixture
def tree(tmp_path):
    """A folder with the package and its library of CPU kernels."""
    shutil.copytree(ROOT / "lqray", tmp_path / "lqray", ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    shutil.copy(ops.loaded.path, tmp_path / "lqray/_native.abi3.so")
    return tmp_path


def run(tree: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LQRAY_NATIVE")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env=kept | {"PYTHONPATH": str(tree)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def run_with_cuda(tree: Path, linked: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Beside a torch for the CPU, whose missing library is the one it was linked against."""
    shutil.copy(linked, tree / "lqray")
    stand_in = linked.parent / "stand_in"
    return run(tree, code, **({"LD_LIBRARY_PATH": str(stand_in)} if torch.version.cuda is None else {}))


@NVCC
def test_cuda_kernels_compile_without_warnings_and_all_but_without_spills(checked):
    assert re.search(r"\d+ kernels, at most \d+ registers and \d+ bytes spilled", checked)


@NVCC
@pytest.mark.skipif(not shutil.which("readelf"), reason="no readelf here")
def test_the_library_names_what_it_needs(linked):
    """As the loader reads it. CUDA's runtime is inside."""
    dynamic = subprocess.run(["readelf", "-d", str(linked)], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    assert {"libtorch_cuda.so", "libtorch_cpu.so"} <= needed
    assert not [name for name in needed if name.startswith("libcud")]


@NVCC
@NATIVE
def test_the_library_loads_and_has_every_operator_for_cuda(tree, linked):
    """With every symbol that it uses: what torch loads is bound at once."""
    code = (
        "import torch; from lqray import ops; print(ops.loaded.path.name, *ops.loaded.cuda.architectures);"
        "print(*(ops.native.backend(name, device) for name in ops.native.OPERATORS for device in ('cpu', 'cuda')))"
    )
    done = run_with_cuda(tree, linked, code)
    names, backends = done.stdout.splitlines()
    assert names.split() == ["_native.abi3.so", *ARCHITECTURES]
    assert set(backends.split()) == {"native"}
    assert done.stderr == ""


@NATIVE
def test_a_cuda_library_that_does_not_load_leaves_the_cpu_its_kernels_and_says_so_once(tree):
    (tree / "lqray/_native_cuda.abi3.so").write_bytes(b"not a library")
    code = (
        "from lqray import ops; print(ops.loaded.path, ops.loaded.cuda.path, ops.native.backend('encode', 'cpu'));"
        "print(ops.loaded.cuda.reason)"
    )
    done = run(tree, code)
    assert done.stdout.split()[:3] == [str(tree / "lqray/_native.abi3.so"), "None", "native"]
    assert done.stderr.count("slow") == 1
    for said in (done.stdout, done.stderr):
        assert "_native_cuda.abi3.so does not load" in said
        assert "`lqray build-native` builds it anew" in said


@NVCC
@NATIVE
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
def test_a_cuda_library_beside_a_torch_without_cuda_names_what_is_missing(tree, linked):
    shutil.copy(linked, tree / "lqray")
    done = run(tree, "from lqray import ops; print(ops.native.backend('encode', 'cpu'))")
    assert done.stdout.split() == ["native"]
    assert "libtorch_cuda.so" in done.stderr


@NVCC
@NATIVE
def test_tensors_on_two_gpus_are_refused(tree, linked):
    code = ELSEWHERE + (
        "answer('encode_fused', on('cuda:0', 64), on('cuda:1', 8), 3, 32, 'l2', 0, 0)\n"
        "answer('encode', on('cuda:1', 64), on('cuda:0', 2), on('cuda:1', 8), 3, 32, 0, 0)\n"
        "answer('encode_fused', on('cuda:1', 64), on('cpu', 8), 3, 32, 'l2', 0, 0)\n"
        "answer('encode_fused', on('cuda:1', 64), on('cuda:1', 8), 3, 32, 'l2', 0, 0)\n"
    )
    levels, norms, cpu, same = run_with_cuda(tree, linked, code).stdout.splitlines()
    assert "levels is on cuda:1; allowed: cuda:0" in levels
    assert "norms is on cuda:0; allowed: cuda:1" in norms
    assert "levels is on cpu; allowed: cuda:1" in cpu
    assert "allowed" not in same  # the next thing is the device, which is not here


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not"),
    [
        (["sm_80"], [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (10, 0)]),
        (["sm_86"], [(8, 6), (8, 9)], [(8, 0)]),
        (["compute_90"], [(9, 0), (10, 0), (12, 1)], [(8, 9)]),
        (["sm_90a"], [(9, 0)], [(9, 1), (10, 0)]),
        (["compute_90a"], [(9, 0)], [(10, 0)]),
        (["sm_100f", "compute_100f"], [(10, 0), (10, 3)], [(12, 0)]),
        (DEFAULT, [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (13, 0)], [(7, 0), (6, 1)]),
        ([], [], [(8, 0)]),
    ],
)
def test_machine_code_runs_on_later_minor_versions_and_ptx_on_all_later_ones(architectures, runs, does_not):
    assert [one for one in [*runs, *does_not] if devices.runs_on(architectures, one)] == runs


@NVCC
@NATIVE
def test_a_gpu_that_the_library_does_not_serve_has_the_reference_and_the_other_has_its_kernels(tree, linked):
    """A T4 and a V100; this stands for CUDA's start, at which torch calls what waits for it."""
    code = f"""
import torch
torch.cuda.device_count = lambda: 2
torch.cuda.get_device_capability = lambda index: [(7, 5), (7, 0)][index]
torch.cuda.get_device_name = lambda index: ["T4", "V100"][index]
waiting = len(torch.cuda._queued_calls)
{ELSEWHERE}
for call, _ in torch.cuda._queued_calls[waiting:]:
    call()
answer("bucket_norms", on("cuda:0", 64), 32, "l2")
answer("bucket_norms", on("cuda:1", 64), 32, "l2")
torch.cuda.is_available, torch.cuda.init = lambda: True, lambda: None
print(*(ops.native.backend("encode", place) for place in ("cpu", "cuda:0", "cuda:1")))
"""
    done = run_with_cuda(tree, linked, code)
    first, second, backends = done.stdout.splitlines()
    assert "API call failed" in first  # the kernel's own: it asks torch for the device, or for memory there
    assert second == "the reference computes"
    assert backends.split() == ["native", "native", "reference"]
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("lqray")]
    assert "slow, on cuda:1 (V100, 7.0)" in said
    assert " ".join(ARCHITECTURES) in said


@NATIVE
def test_what_is_left_to_the_reference_gives_its_results(tree):
    """On the CPU, whose kernels and reference are told apart by their errors."""
    code = """
import torch
from lqray import ops
from lqray.ops import devices

x, levels = torch.sin(torch.arange(64.0)), torch.linspace(-1, 1, 8)
raw = torch.ops.lqray

def results():
    payload = raw.encode_fused(x, levels, 3, 32, "linf", 1, 2)
    sizes = (levels, 64, 3, 32)
    return [payload, raw.bucket_norms(x, 32, "linf"), raw.encode(x, torch.ones(2), levels, 3, 32, 1, 2),
            raw.decode(payload, *sizes), raw.decode_sum(payload[None], *sizes, 0.5),
            raw.decode_sum(payload[None], *sizes, 1.0, x), raw.hadamard(x, 32, 1, 2, False),
            raw.encode_rotated(x, levels, 3, 32, "linf", 1, 2, 3), *of_blocks()]

def of_blocks():
    codes, order = torch.tensor([[3, 0, 9, 9]], dtype=torch.uint8), torch.tensor([[9, 3], [1, 1]])
    widths, begins = raw.block_widths(codes, order, 5)
    row = torch.ones(1), widths[0, :1], begins[0, :1], torch.linspace(-1, 1, 510)
    return [widths, begins, *raw.eden_encode(x, *row, 5, 64, 1, 2)]

def show():
    try:
        raw.bucket_norms(x, 0, "l2")
    except Exception as error:
        print(type(error).__name__, all(map(torch.equal, results(), native)))

native = results()
show()
for index in (1, 0):
    devices.leave_to_reference(ops._library, ops.native.REFERENCES, frozenset([index]), key="CPU")
    show()
"""
    done = run(tree, code)
    assert done.stdout.splitlines() == ["RuntimeError True", "RuntimeError True", "ValueError True"]
    assert done.stderr == ""
