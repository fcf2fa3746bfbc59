"""Every act and every way to fail, then random pairs: `python -m tests.faults --help`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.acts import MODES, Fault
from tests.faults.cases import Sweeps


def main() -> int:
    """Exit status 1 where anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--every", type=int, default=1, help="only every N-th act")
    parser.add_argument("--first", type=int, default=1, help="the first act")
    parser.add_argument("--last", type=int, help="the last act (default: until the sweep reaches no further)")
    parser.add_argument("--pairs", type=int, default=0, help="so many cases with a second fault in the run after it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="kept afterwards: what was wrong is there")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="lqray-faults-"))
    began, counts, wrong = time.monotonic(), Counter[str](), 0
    with Sweeps(folder) as sweeps:
        print(f"{len(sweeps.acts)} acts in an undisturbed sweep; {folder}", flush=True)
        randomly = random.Random(options.seed)
        last = options.last or len(sweeps.acts) + 20
        single = [(Fault(mode, k),) for mode in options.modes for k in range(options.first, last + 1, options.every)]
        pairs = [
            tuple(Fault(randomly.choice(MODES), randomly.randint(1, len(sweeps.acts))) for _ in range(2))
            for _ in range(options.pairs)
        ]
        for faults in [*single, *pairs]:
            outcome = sweeps.case(*faults)
            counts["not reached" if outcome.act == "not reached" else faults[0].mode] += 1
            if outcome.wrong:
                wrong += 1
                print(outcome, flush=True)
    print(f"{sum(counts.values())} cases in {time.monotonic() - began:.0f} s ({dict(counts)}); {wrong} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
