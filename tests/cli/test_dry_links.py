"""`lqray run --dry-run --link`: bytes and modelled seconds of each method, before anything has run."""

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.experiment.grid import read_experiment
from lqray.training.estimate import handed
from tests.testing.figure_stores import FigureStore

FILE = """
name: planned
base:
  workers: 4
  data: {name: digits}
  model: {name: mlp, layers: [36]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 10, batch_size: 8}
sweep:
  - matrix:
      seed: [1, 2]
      quantizer:
        - {method: full_precision}
        - {method: bf16}
        - {method: powersgd}
        - {method: qsgd_inf, bits: 3, bucket_size: 1024}
"""
COORDINATES = 64 * 36 + 36 + 36 * 10 + 10


@pytest.fixture
def planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planned.yaml").write_text(FILE)
    return tmp_path / "planned.yaml"


def invoke(*arguments):
    return CliRunner().invoke(main, ["run", "planned.yaml", *arguments])


def test_bytes_and_seconds_of_each_method_by_hand(planned):
    assert COORDINATES == 2710
    done = invoke("--dry-run", "--link", "1mbit,1gbit", "--workers", "4")
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line.split()[1:] for line in done.output.splitlines() if "kB" in line}
    # A ring of four: 1.5 times 4 * 2,710 bytes, 130,080 bits.
    assert rows["full_precision"] == ["10.8", "kB", "-", "130", "ms", "0.13", "ms"]
    assert rows["bf16"][-4:] == ["65", "ms", "0.065", "ms"]
    assert "qsgd_inf" in rows
    assert any(line.split()[0] == "powersgd" and "kB" not in line for line in done.output.splitlines() if line.strip())
    assert " ".join(done.output.split()).count("Modelled, not measured") == 1


def test_computing_is_that_of_runs_in_the_store(planned):
    """A worker's 10 + 30 ms, of a finished run of the same network; with another batch it is not known."""
    trial = next(iter(read_experiment(planned, ()).trials())).trial
    store = FigureStore(planned.parent, "planned")
    seconds = {f"time/{phase}_seconds": {1: 9.0, 3: value} for phase, value in (("forward", 0.01), ("backward", 0.03))}
    sent = {"wire/payload_bytes": 1e4, "wire/bytes_sent": 1.5e4, "wire/bits_per_coordinate": 32.0}
    store.run(
        "full_precision", 7, sent | seconds, {key: value for key, value in trial.params().items() if key != "seed"}
    )
    store.save()
    said = invoke("--dry-run", "--link", "1mbit", "--workers", "4").output
    assert "10.8 kB 40 ms 130 ms" in " ".join(said.split())
    other = invoke("--dry-run", "--link", "1mbit", "--workers", "4", "--set", "schedule.batch_size=4").output
    assert "10.8 kB - 130 ms" in " ".join(other.split())


def test_payloads_are_those_that_are_sent(planned):
    trials = {one.trial.quantizer.method: one.trial for one in read_experiment(planned, ()).trials()}
    assert handed(trials["full_precision"]) == ("all_reduce", 10_840, 0.0, 2710)
    reduction, payload, mean, count = handed(trials["qsgd_inf"])
    assert (reduction, mean, count) == ("all_gather", 0.0, 2710)
    # 3 bits a coordinate and a norm of 4 bytes for each 1,024.
    assert payload == pytest.approx(2710 * 3 / 8 + 2710 / 1024 * 4, rel=0.01)
    assert handed(trials["powersgd"]) is None


@pytest.mark.parametrize(
    "options", [("--link", "10mbit"), ("--dry-run", "--workers", "2"), ("--dry-run", "--link", "1")]
)
def test_options_that_do_not_go_together_are_said(planned, options):
    done = invoke(*options)
    assert done.exit_code == 2
    assert "allowed: " in done.output
