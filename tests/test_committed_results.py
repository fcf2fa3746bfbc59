"""Tables of experiments/results/*.md are those of the records beside them."""

import csv
import re
import statistics
from collections import defaultdict
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "experiments" / "results"


def losses(name: str, *keys: str) -> dict[tuple[str, ...], list[float]]:
    """Final test losses of each group, by the order of seeds."""
    found = defaultdict(dict)
    with (RESULTS / name / "runs.csv").open() as file:
        for row in csv.DictReader(file):
            found[tuple(row[key] for key in keys)][int(row["seed"])] = float(row["test/loss"])
    return {key: [own[seed] for seed in sorted(own)] for key, own in found.items()}


def test_the_table_of_the_small_gpt():
    found = {
        (method, f"{float(bits):g}" if bits else ""): own
        for (method, bits), own in losses("gpt_small", "quantizer.method", "quantizer.bits").items()
    }
    row = r"^\| (\w+)(?:, (?:([\d.]+) bits?|rank 4))? \|.*\| (\d\.\d{3}) ± (\d\.\d{3}) \| (\d\.\d{3}) \|"
    table = re.findall(row, (RESULTS / "gpt_small.md").read_text(), re.MULTILINE)
    assert len(table) == len(found) == 10
    for method, bits, mean, spread, median in table:
        own = found[method, bits]
        assert len(own) == 5
        said = (statistics.fmean(own), statistics.stdev(own), statistics.median(own))
        assert tuple(f"{value:.3f}" for value in said) == (mean, spread, median), (method, bits)


def test_the_table_of_loss_against_bytes():
    keys = ("quantizer.method", "quantizer.bits", "exchange.every", "optimizer.name")
    found = {
        (f"{float(bits):g}" if bits else "32", every or "1", optimizer): own
        for (_, bits, every, optimizer), own in losses("diloco", *keys).items()
    }
    text = (RESULTS / "diloco.md").read_text()
    rows = re.findall(r"^\| (\d+) bits?(, AdamW as in gpt_small)? \| (.*) \|$", text, re.MULTILINE)
    cells = 0
    for bits, other, row in rows:
        for every, cell in zip(("1", "8", "32", "128"), row.split("|"), strict=False):
            if not cell.strip():
                continue
            own = found[bits, every, "adamw" if other else "muon"]
            spread = f" ± {statistics.stdev(own):.3f}, five seeds" if len(own) == 5 else ""
            assert cell.strip().startswith(f"{statistics.fmean(own):.3f}{spread} ("), (bits, every)
            cells += 1
    assert cells == len(found) == 17
