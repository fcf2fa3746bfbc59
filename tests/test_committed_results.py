"""Committed tables of experiments, those of each folder and of its prose, are what the records beside them make."""

import csv
import io
import json
import math
import re
import runpy
import shutil
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from lqray.reporting.claim import recorded_options
from lqray.reporting.machine import rows
from lqray.reporting.planned import Recorded
from lqray.reporting.report import make_report, written

RESULTS = Path(__file__).parent.parent / "experiments" / "results"
WITHOUT_RECORD = {"2026-11-24-fashion_mnist": "the records of its eight runs were not kept, which its page says"}
FOLDERS = sorted(one.name for one in RESULTS.iterdir() if one.name not in WITHOUT_RECORD)
MOST_BYTES = 360_000


def same(found, said):
    """Of what is said, a number that text or JSON may hold; what is not said does not count."""
    if isinstance(said, dict):
        return isinstance(found, dict) and all(key in found and same(found[key], one) for key, one in said.items())
    if isinstance(said, list):
        return isinstance(found, list) and len(found) == len(said) and all(map(same, found, said))
    try:
        numbers = float(found), float(said)
    except (TypeError, ValueError):
        return found == said
    return math.isclose(*numbers, rel_tol=1e-9) or all(map(math.isnan, numbers))


def markdown_columns(text):
    """Of the first table, by title the cells of the columns that are called so, in order."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    start = next(index for index, line in enumerate(lines) if re.match(r"\| [-:]+ \|", line) and index) - 1
    table = []
    for line in lines[start:]:
        cells = line.strip("| ").split(" | ")
        if table and len(cells) != len(table[0]):
            break
        table.append(cells)
    found = defaultdict(list)
    for title, _, *cells in zip(*table, strict=True):
        found[title].append(cells)
    return dict(found)


def csv_columns(text):
    titles, *lines = csv.reader(io.StringIO(text))
    return {title: list(cells) for title, cells in zip(titles, zip(*lines, strict=True), strict=True)}


def what_differs(folder):
    """Files of a folder that its own records do not make. A column that a later version adds is no difference; of
    others `python experiments/remake.py` makes them again."""
    text = (folder / "record.json").read_text()
    record = json.loads(text)
    made = make_report([Recorded(record["experiment"], str(folder))], recorded_options(text))
    again = [
        {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        for row in rows(made.comparison)
    ]
    shown = markdown_columns(written(made, "markdown"))
    readme = (folder / "README.md").read_text().partition("## How they compare")[2]
    held = {
        "record.json": (again, record["result"]),
        "report.csv": (csv_columns(written(made, "csv")), csv_columns((folder / "report.csv").read_text())),
        "report.json": (json.loads(written(made, "json")), json.loads((folder / "report.json").read_text())),
        "report.md": (shown, markdown_columns((folder / "report.md").read_text())),
        "README.md": (shown, markdown_columns(readme)),
    }
    del held["report.json"][1]["experiments"]  # where the records lie
    return [name for name, (found, said) in held.items() if not same(found, said)]


def test_every_folder_is_a_record_or_says_why_not():
    assert set(WITHOUT_RECORD) | set(FOLDERS) == {one.name for one in RESULTS.iterdir()}
    assert [name for name in FOLDERS if not (RESULTS / name / "record.json").exists()] == []
    for name in WITHOUT_RECORD:
        assert "were not kept" in (RESULTS / name / "RESULTS.md").read_text()


def test_figures_call_methods_as_files_do():
    drawn = list(RESULTS.glob("*/figures/*.svg"))
    assert len(drawn) >= 5
    assert [str(one) for one in drawn if "SuperSGD" in one.read_text() or "QSGDinf" in one.read_text()] == []


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_makes_its_own_tables_again(name):
    folder = RESULTS / name
    record = json.loads((folder / "record.json").read_text())
    assert name == f"{record['date']}-{record['experiment']}"
    assert record["hypothesis"]
    assert record["commands"]
    assert record["machines"][0]["host"]
    assert record["code"][0]["commit"]
    assert sum(one.stat().st_size for one in folder.rglob("*") if one.is_file()) < MOST_BYTES
    assert what_differs(folder) == []


def test_a_number_that_no_record_makes_is_noticed(tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(RESULTS / "2026-11-27-gpt_small", folder)
    document = json.loads((folder / "runs.json").read_text())
    document["runs"][0]["metrics"]["test/loss"] += 0.01
    (folder / "runs.json").write_text(json.dumps(document))
    assert what_differs(folder) == ["record.json", "report.csv", "report.json", "report.md", "README.md"]


@pytest.mark.parametrize("name", ["2026-11-27-gpt_small"])
def test_a_folder_that_is_made_again_is_the_same(tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(RESULTS / name, folder)
    runpy.run_path(str(RESULTS.parent / "remake.py"))["remake"](folder)
    for file in (one for one in (RESULTS / name).rglob("*") if one.is_file()):
        again = folder / file.relative_to(RESULTS / name)
        if file.name in ("RESULTS.md", "experiment.yaml", "runs.csv", "runs.json") or file.parent.name == "figures":
            assert again.read_bytes() == file.read_bytes(), file.name
        assert again.exists()
    assert what_differs(folder) == []
    assert [one.name for one in tmp_path.iterdir()] == [name]


def losses(name, *keys, metric="test/loss"):
    """Final test losses of each group, by the order of seeds."""
    found = defaultdict(dict)
    with (RESULTS / name / "runs.csv").open() as file:
        for row in csv.DictReader(file):
            value = float(row[metric]) if row[metric] else math.nan
            found[tuple(row[key] for key in keys)][int(row.get("seed", 0))] = value
    return {key: [own[seed] for seed in sorted(own)] for key, own in found.items()}


def bits(text):
    return f"{float(text):g}" if text else ""


def test_the_table_of_the_small_gpt():
    found = {
        (method, bits(own_bits)): own
        for (method, own_bits), own in losses("2026-11-27-gpt_small", "quantizer.method", "quantizer.bits").items()
    }
    row = r"^\| (\w+)(?:, (?:([\d.]+) bits?|rank 4))? \|.*\| (\d\.\d{3}) ± (\d\.\d{3}) \| (\d\.\d{3}) \|"
    table = re.findall(row, (RESULTS / "2026-11-27-gpt_small/RESULTS.md").read_text(), re.MULTILINE)
    assert len(table) == len(found) == 10
    for method, own_bits, mean, spread, median in table:
        own = found[method, own_bits]
        assert len(own) == 5
        said = (statistics.fmean(own), statistics.stdev(own), statistics.median(own))
        assert tuple(f"{value:.3f}" for value in said) == (mean, spread, median), (method, own_bits)


def test_the_table_of_its_learning_rates():
    keys = ("quantizer.method", "quantizer.bits", "optimizer.lr")
    found = {
        (method, bits(own_bits), lr): own
        for (method, own_bits, lr), (own,) in losses("2026-11-27-gpt_small_rates", *keys).items()
    }
    rates = ("0.001", "0.002", "0.003", "0.009")
    row = r"^\| (\w+)(?:, (?:([\d.]+) bits?|rank 4))? \| ([\d.*]+) \| ([\d.*]+) \| ([\d.*]+) \| ([\d.*]+) \|$"
    table = re.findall(row, (RESULTS / "2026-11-27-gpt_small/RESULTS.md").read_text(), re.MULTILINE)
    assert len(table) == 12
    for method, own_bits, *cells in table[1:]:
        own = (
            [statistics.fmean(value for (*_, lr), value in found.items() if lr == rate) for rate in rates]
            if method == "mean"
            else [found[method, own_bits, rate] for rate in rates]
        )
        assert [cell.strip("*") for cell in cells] == [f"{value:.3f}" for value in own], (method, own_bits)
        assert [index for index, cell in enumerate(cells) if "*" in cell] == [own.index(min(own))]


def test_the_table_of_loss_against_bytes():
    keys = ("quantizer.method", "quantizer.bits", "exchange.every", "optimizer.name")
    found = {
        (bits(own_bits) or "32", every or "1", optimizer): own
        for (_, own_bits, every, optimizer), own in losses("2026-11-27-diloco", *keys).items()
    }
    text = (RESULTS / "2026-11-27-diloco/RESULTS.md").read_text()
    table = re.findall(r"^\| (\d+) bits?(, AdamW as in gpt_small)? \| (.*) \|$", text, re.MULTILINE)
    cells = 0
    for own_bits, other, row in table:
        for every, cell in zip(("1", "8", "32", "128"), row.split("|"), strict=False):
            if not cell.strip():
                continue
            own = found[own_bits, every, "adamw" if other else "muon"]
            spread = f" ± {statistics.stdev(own):.3f}, five seeds" if len(own) == 5 else ""
            assert cell.strip().startswith(f"{statistics.fmean(own):.3f}{spread} ("), (own_bits, every)
            cells += 1
    assert cells == len(found) == 17
    for other, mean in (("adamw", "-0.172"), ("muon", "+0.374")):
        pairs = zip(found["1", "8", "muon"], found["32", "1", other], strict=True)
        assert f"{statistics.fmean(mine - theirs for mine, theirs in pairs):+.3f}" == mean
        assert f"| {mean} (" in text


def test_the_table_of_the_compressors():
    columns = csv_columns((RESULTS / "2026-11-27-compressors/report.csv").read_text())
    keys = ("quantizer.method", "quantizer.bits", "test/accuracy mean", "test/accuracy std", "test/accuracy p_value")
    found = {(method, bits(own_bits)): own for method, own_bits, *own in zip(*map(columns.get, keys), strict=True)}
    row = r"^\| (\w+)(?:, (?:([\d.]+) bits?|error feedback))? \|.*\| ([\d.]+)% ± ([\d.]+) \| (?:-|.*\(p ([\d.]+)\)) \|"
    table = re.findall(row, (RESULTS / "2026-11-27-compressors/RESULTS.md").read_text(), re.MULTILINE)
    assert len(table) == len(found) == 19
    for method, own_bits, mean, spread, p in table:
        alone = [own for (name, _), own in found.items() if name == method] if not own_bits else []
        own = alone[0] if alone else found[method, own_bits]
        assert [f"{100 * float(value):.2f}" for value in own[:2]] == [mean, spread], (method, own_bits)
        assert not p or math.isclose(float(own[2]), float(p), rel_tol=0.05), (method, own_bits)
