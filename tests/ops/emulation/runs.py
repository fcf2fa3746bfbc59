"""Which tests each variant of the library is asked, in which order of threads and blocks, and what came out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ops.emulation import build

ROOT = Path(__file__).parents[3]
LIMIT = 1200  # seconds of a run; a launch that does not end is told by the machine, much earlier
NAMES = ["test_backends", "test_norms", "test_edges", "test_rotated", "test_blocks", "test_fuzz", "emulation/cases"]
FILES = [f"tests/ops/{name}.py" for name in NAMES]
ALL = "native-cpu or fuzz or emulation"
# Without those that are long, or ask no kernel, where others have the same kernels run.
LEFT_OUT = [
    "test_compiled",
    "test_the_library_itself",
    "wrong_length",
    "every_order",
    "bits_of_coordinates",
    "bits_of_words",
    "(test_long_tensors and not 3-native)",
    "(test_awkward_sizes and not float32 and not 4099-torch.float16)",
    "4099-torch.float32",
    "(of_blocks_of_awkward and torch.float16)",
    "(test_bucket_statistics and not 100.0-l2-torch.bfloat16)",
]
SHORTER = f"({ALL}) and not ({' or '.join(LEFT_OUT)})"
QUICK = "native-cpu and (1009 or views or short or float64 or every_size or sums_of or begin or any_scale or nan_and"
QUICK += " or padded or (spans and 3-native) or (some_of_which and (128-native or 4096-native))"
QUICK += " or (blocks_of_awkward and not torch.float) or blocks_of_spans or outside or many_blocks"
QUICK += " or on_a_level or beyond_the_last or (long_tensors and 3-)) and not 2048-torch"
FEW = "native-cpu and (257-torch.float16 or views or sums_of or (short and 2048))"


@dataclass(frozen=True)
class Run:
    """variant: of the library. order, most_blocks: as of plugin.settings. tests: pytest's -k, of these files."""

    name: str
    variant: str
    order: str
    most_blocks: int
    tests: str
    examples: int = 40
    files: Sequence[str] = tuple(FILES)


RUNS = [
    Run("random order, whole grids", "plain", "random", 0, ALL),
    Run("races, random order, two blocks", "races", "random", 2, SHORTER, 20),
    Run("bounds, mixed order, two blocks", "bounds", "mixed", 2, SHORTER, 20),
    Run("highest warp first, one block", "plain", "highest", 1, SHORTER),
    Run("lowest warp first, three blocks", "plain", "lowest", 3, SHORTER),
    Run("fibers of ucontext, mixed order", "ucontext", "mixed", 2, FEW),
]
# A sample of them that sees most faults in a few seconds.
FIRST = Run("races, quick", "races", "random", 2, QUICK, 10)
# Likewise, of the kernels of rotated blocks alone.
BLOCKS = Run("blocks, quick", "races", "random", 2, QUICK, 10, ("tests/ops/test_blocks.py",))


@dataclass(frozen=True)
class Outcome:
    """error: what is wrong, or None. tests: how many passed. executed: what the machine says that it ran."""

    run: Run
    error: str | None
    tests: int
    executed: str
    seconds: float


def ask(run: Run, library: Path, seed: int = 0) -> Outcome:
    """Runs the tests against the library, in a process of their own, until one fails."""
    started = time.monotonic()

    def outcome(error: str | None, tests: int = 0, executed: str = "") -> Outcome:
        return Outcome(run, error, tests, executed, time.monotonic() - started)

    environment = os.environ | {
        "LQRAY_NATIVE": "1",
        "LQRAY_NATIVE_LIBRARY": str(library),
        "LQRAY_EMULATED": f"{run.order} {run.most_blocks} {seed * len(RUNS) + 1 + len(run.name)}",
        "LQRAY_FUZZ_EXAMPLES": str(run.examples),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    if run.variant == "bounds":
        libraries = build.sanitizer_libraries()
        if not libraries:
            return outcome("the compiler has no libasan.so and libubsan.so: accesses out of bounds cannot be seen")
        environment |= {
            "LD_PRELOAD": " ".join(map(str, libraries)),
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:symbolize=0:quarantine_size_mb=16",
        }
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-x", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-p", "tests.ops.emulation.plugin", *run.files, "-k", run.tests]
    try:
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, env=environment, cwd=ROOT, timeout=LIMIT, **both)
    except subprocess.TimeoutExpired:
        return outcome(f"it did not end within {LIMIT} s")
    passed = re.search(r"(\d+) passed", done.stdout)
    executed = re.search(r"^emulated: (.*)", done.stdout, re.MULTILINE)
    error = None if done.returncode == 0 and passed else reason(done.returncode, done.stdout)
    return outcome(error, int(passed.group(1)) if passed else 0, executed.group(1) if executed else "")


WORDS = [r"emulated CUDA: .*", r"ERROR: AddressSanitizer: .*", r".*runtime error: .*", r"^FAILED .*", r"^E  .*"]
WORDS += [r"^Fatal Python error: .*"]
PLACE = re.compile(r"(?P<library>/\S+\.so)\+(?P<offset>0x[0-9a-f]+)")


def reason(status: int, output: str) -> str:
    """What of a failed run's output says why: the machine's or a sanitizer's word, or the assertion that failed."""
    for pattern in WORDS:
        found = re.search(pattern, output, re.MULTILINE)
        if found:
            test = re.search(r'tests/ops/\S+", line \d+ in (test_\w+)', output)
            return PLACE.sub(line_of, found.group().strip()) + (f" [{test.group(1)}]" if test else "")
    return f"status {status}: {output[-1500:]}"


def line_of(place: re.Match[str]) -> str:
    """The line of the kernels behind "library+0x...", where addr2line is installed."""
    try:
        command = ["addr2line", "-e", place["library"], place["offset"]]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return place.group()
    return Path(found).name if "?" not in found else place.group()
