"""Make folders of experiments/results again from their own records, as `lqray export` would write them today.

python experiments/remake.py [FOLDER...]: where a version shows other columns or intervals. Options are those that
record.json has; figures and RESULTS.md stay as they are.
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

from lqray.reporting.claim import RECORD, recorded_options
from lqray.reporting.export import ExportOptions, export
from lqray.reporting.planned import Recorded

RESULTS = Path(__file__).parent / "results"
PROSE, FIGURES = "RESULTS.md", "figures"


def remake(folder: Path) -> None:
    """Replace a folder by what its records make."""
    text = (folder / RECORD).read_text()
    record = json.loads(text)
    options = ExportOptions(
        recorded_options(text), record["export"]["raw"], record["export"]["keep"], record["hypothesis"]
    )
    made = folder.with_name(f"{folder.name}.new")
    has_figures = (folder / FIGURES).exists()
    draw = partial(_kept_figures, folder / FIGURES, record["experiment"]) if has_figures else None
    export(Recorded(record["experiment"], str(folder)), made, options, draw)
    if (folder / PROSE).exists():
        shutil.copy(folder / PROSE, made)
    shutil.rmtree(folder)
    made.rename(folder)


def _kept_figures(source: Path, experiment: str, target: Path) -> list[str]:
    shutil.copytree(source, target)
    return [f"{one.stem.removeprefix(f'{experiment}-')}: {one.name}" for one in sorted(source.iterdir())]


if __name__ == "__main__":
    given = [Path(one).resolve() for one in sys.argv[1:]]
    for one in given or sorted(one.parent for one in RESULTS.glob(f"*/{RECORD}")):
        remake(one)
        sys.stdout.write(f"{one}\n")
