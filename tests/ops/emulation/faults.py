"""python -m tests.ops.emulation.faults: plants one fault at a time in a copy of the CUDA kernels, and shows what sees
it. Status 1 where a fault is not seen, where one that changes nothing is, or where one does not compile."""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tests.ops.emulation import build
from tests.ops.emulation.fault import Fault, barriers
from tests.ops.emulation.fault_list import FAULTS, SPARE
from tests.ops.emulation.runs import BLOCKS, FIRST, ROOT, RUNS, Run, ask

# The quick ones first; what they do not see, every run is asked.
LARGE = replace(RUNS[0], name="large tensors and orders", tests="emulation")
STAGES = [FIRST, LARGE, *sorted(RUNS, key=lambda run: run.variant)]
STAGES_OF_BLOCKS = [replace(BLOCKS, variant=variant) for variant in ("races", "bounds")]


class NotSeenError(Exception):
    """What is wrong with the proof."""


def seen(fault: Fault, csrc: Path, folder: Path) -> tuple[str, str]:
    """(the run that sees the fault, its word why). Raises NotSeenError, BuildError, or LookupError."""
    copy = folder / re.sub(r"\W+", "_", fault.name)
    shutil.copytree(csrc, copy)
    kernels = build.kernel_text(copy)
    build.write_kernels(copy, fault.plant(kernels))
    libraries: dict[str, Path] = {}
    for run in stages(kernels, build.kernel_text(copy)):
        if run.variant not in libraries:
            libraries[run.variant] = build.build(run.variant, copy, folder, copy.name)
        outcome = ask(run, libraries[run.variant])
        if outcome.error:
            return run.name, outcome.error
    raise NotSeenError("no run sees it")


def stages(before: str, after: str) -> list[Run]:
    """The runs that are asked, of a fault that made `after` of the kernels' text."""
    changed = [
        one != other for one, other in zip(*(text.split(build.FILES_APART) for text in (before, after)), strict=True)
    ]
    of_blocks = any(changed[1 - len(build.CUDA_SOURCES) :])
    return [*(STAGES_OF_BLOCKS if of_blocks else ()), *STAGES]


def verdict(fault: Fault, csrc: Path, folder: Path) -> tuple[bool, str, str]:
    """(whether it is as it should be, what saw the fault, why)."""
    started = time.monotonic()
    try:
        by, word = seen(fault, csrc, folder)
        right = fault.name not in SPARE
    except NotSeenError as error:
        by, word = "-", SPARE.get(fault.name, str(error))
        right = fault.name in SPARE
    except (build.BuildError, LookupError) as error:
        by, word, right = "-", f"ERROR: {error}", False
    word = re.sub(r"/\S*/", "", word.replace("|", "/")).replace("\n", " ")[:200]
    print(
        f"| {'' if right else 'WRONG: '}{fault.name} | {by} | {word} | {time.monotonic() - started:.0f} s |", flush=True
    )
    return right, by, word


def main() -> int:
    """The table."""
    parser = argparse.ArgumentParser(prog="python -m tests.ops.emulation.faults", description=__doc__)
    parser.add_argument("--csrc", type=Path, default=ROOT / "csrc", help="the kernels' folder (default: csrc/)")
    parser.add_argument("--only", default="", help="a regular expression: faults whose name has it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time")
    chosen = parser.parse_args()
    started, csrc = time.monotonic(), chosen.csrc.resolve()
    every = [*barriers(build.kernel_text(csrc)), *FAULTS]
    faults = [fault for fault in every if re.search(chosen.only, fault.name)]
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, ThreadPoolExecutor(chosen.jobs) as pool:
        for part in build.machine_parts(csrc, Path(folder)):
            part()
        print("| fault | seen by | its word | |\n| --- | --- | --- | --- |", flush=True)
        verdicts = list(pool.map(lambda fault: verdict(fault, csrc, Path(folder)), faults))
    wrong = sum(not right for right, _, _ in verdicts)
    print(f"\n{len(verdicts)} faults, {wrong} not as they should be, {time.monotonic() - started:.0f} s")
    return 1 if wrong or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
