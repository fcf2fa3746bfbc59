"""The CPU library built with AddressSanitizer and UBSan, under the fuzz tests and those of awkward sizes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ISAS = ["portable", "avx2", "avx512"]
ROOT = Path(__file__).parents[2]
GXX = shutil.which("g++")


def runtime(name: str) -> Path | None:
    """A sanitizer's runtime library of this g++."""
    if not GXX:
        return None
    found = subprocess.run([GXX, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    return path.resolve() if path.is_absolute() and path.exists() else None


RUNTIMES = [runtime("libasan.so"), runtime("libubsan.so")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(None in RUNTIMES, reason="no g++ with the sanitizers' libraries here"),
    pytest.mark.skipif(os.environ.get("LQRAY_NATIVE") == "0", reason="LQRAY_NATIVE=0"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sanitized")
    command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={folder}", f"--build-temp={folder}/temp"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"LQRAY_SANITIZE": "1", "LQRAY_CUDA": "0"}, check=True)
    return next(folder.rglob("_native*.so"))


@pytest.mark.parametrize("isa", ISAS[:3])
def test_no_access_out_of_bounds_and_no_undefined_behaviour(library, isa):
    """`avx512` is the best that this machine has."""
    tests = ["test_fuzz.py", "test_backends.py", "test_norms.py", "test_blocks.py", "test_rans.py", "test_rotated.py"]
    tests += ["test_slopes.py", "test_grids.py"]
    tests = [f"tests/ops/{name}" for name in tests] + ["tests/communication/test_fuzz_payloads.py"]
    chosen = "fuzz or ((awkward or views or scale or hadamard or padded or refuses or extremes) and native-cpu)"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests, "-k", chosen],
        cwd=ROOT,
        env=os.environ
        | {
            "LQRAY_NATIVE_LIBRARY": str(library),
            "LQRAY_CPU_ISA": isa,
            "LQRAY_FUZZ_EXAMPLES": os.environ.get("LQRAY_FUZZ", "100"),
            "LQRAY_FUZZ": os.environ.get("LQRAY_FUZZ", "30"),
            "LD_PRELOAD": " ".join(str(path) for path in RUNTIMES),
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def test_the_sanitizer_would_speak_up(library):
    """It is really there: a read beyond the end of a tensor beside the library is reported."""
    code = (
        "import ctypes, torch; from lqray import ops; "
        "print(ops.loaded.path); ctypes.string_at(ctypes.c_void_p(torch.empty(1000).data_ptr()), 5000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {
            "LQRAY_NATIVE_LIBRARY": str(library),
            "LD_PRELOAD": " ".join(str(path) for path in RUNTIMES),
            "ASAN_OPTIONS": "detect_leaks=0",
        },
        capture_output=True,
        text=True,
    )
    assert str(library) in done.stdout
    assert "AddressSanitizer" in done.stderr
