"""python -m tests.ops.emulation [--csrc DIR]: builds the emulated library and asks it everything."""

import argparse
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.ops.emulation import build
from tests.ops.emulation.runs import ROOT, RUNS, Outcome, ask


def main() -> int:
    """Status 0 where every run gives the reference's bytes and nothing is wrong; else 1, and a word why."""
    parser = argparse.ArgumentParser(prog="python -m tests.ops.emulation", description=__doc__)
    parser.add_argument("--csrc", type=Path, default=ROOT / "csrc", help="the kernels' folder (default: csrc/)")
    parser.add_argument("--seed", type=int, default=0, help="of the orders; others find others (default: 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    chosen = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="emulated-") as folder, ThreadPoolExecutor(chosen.jobs) as pool:
        try:
            libraries = built(chosen.csrc.resolve(), Path(folder), pool)
        except (build.BuildError, OSError) as error:
            print(f"emulation: {chosen.csrc} is not built: {error}")
            return 1
        print(f"{'built':34} {time.monotonic() - started:5.0f} s", flush=True)
        outcomes = list(pool.map(lambda run: shown(ask(run, libraries[run.variant], chosen.seed)), RUNS))
    wrong = [outcome for outcome in outcomes if outcome.error]
    for outcome in wrong:
        print(f"emulation: {outcome.run.name}: {outcome.error}")
    tests, seconds = sum(outcome.tests for outcome in outcomes), time.monotonic() - started
    verdict = f"wrong in {len(wrong)} runs" if wrong else "every byte is the reference's, and nothing else is wrong"
    print(f"emulation: {len(outcomes)} runs, {tests} tests, {seconds:.0f} s ({cpu_seconds():.0f} of a CPU): {verdict}")
    return 1 if wrong else 0


def built(csrc: Path, folder: Path, pool: ThreadPoolExecutor) -> dict[str, Path]:
    """The library of each variant."""
    if build.compiler() is None:
        raise build.BuildError("there is no C++ compiler")
    variants = sorted({run.variant for run in RUNS})
    kernels = [pool.submit(build.compile_kernels, variant, csrc, folder) for variant in variants]
    for part in [pool.submit(compile_part) for compile_part in build.machine_parts(csrc, folder)]:
        part.result()
    return {one: build.link(one, compiled.result(), folder) for one, compiled in zip(variants, kernels, strict=True)}


def cpu_seconds() -> float:
    """Of the processes that this one started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def shown(outcome: Outcome) -> Outcome:
    """Printed while others still run."""
    verdict = "WRONG" if outcome.error else f"{outcome.tests} tests; {outcome.executed}"
    print(f"{outcome.run.name:34} {outcome.seconds:5.0f} s  {verdict}", flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
