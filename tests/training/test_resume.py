"""A run that was stopped anywhere and continued ends in the same bits as one that never stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from click.testing import CliRunner
from torch.multiprocessing import ProcessExitedException

from lqray.cli import main
from lqray.experiment.schema import Trial
from lqray.training.checkpoint import CheckpointError, Checkpoints, CorruptCheckpointError, read_checkpoint
from lqray.training.loop import Progress
from lqray.training.reports import Report
from lqray.training.worker import run_worker
from tests.testing.ranks import run_ranks

METHODS = {
    "alq": {
        "quantizer": {"method": "alq", "bucket_size": 64, "update_at": [2, 9], "samples": 3},
        "exchange": {"error_feedback": True, "entropy": "rans", "quantize_from": 1},
    },
    "scatter": {
        "quantizer": {"method": "amq", "bucket_size": 64, "update_at": [2, 9], "sampling": "fresh", "samples": 2},
        "exchange": {"reduction": "scatter_reduce", "buckets": "layer"},
        "telemetry": {"every": 4, "samples": 2, "moments": True},
    },
    "bits by parameter": {
        "quantizer": {
            "method": "slopes",
            "bits": {"8.*": 8, "*.weight": 2, "default": 3},
            "bucket_size": 64,
            "levels": "layer",
            "levels_from": 100,
            "update_at": [2, 9],
            "sampling": "fresh",
            "samples": 2,
        },
        "exchange": {"error_feedback": True, "buckets": "layer", "skip": ["norm"], "quantize_from": 1},
        "telemetry": {"every": 4, "samples": 2, "moments": True},
    },
    "adam": {
        "quantizer": {"method": "full_precision"},
        "optimizer": {"name": "adam", "lr": 0.01},
        "schedule": {"iterations": 14, "batch_size": 8, "evaluate_every": 5, "decay": "cosine", "warm_up": 3},
    },
    "moments": {
        "quantizer": {"method": "eden", "bits": 2, "bucket_size": 64},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "exchange": {"precondition": "optimizer"},
    },
    "language model": {
        "data": {"name": "text", "context": 16, "evaluation_examples": 24},
        "model": {"name": "gpt", "layers": 1, "heads": 2, "width": 16, "dropout": 0.1},
        "optimizer": {"name": "muon", "lr": 0.01, "weight_decay": 0.1, "decayed": "matrices", "clip_norm": 0.5},
        "schedule": {
            "iterations": 14,
            "batch_size": 8,
            "accumulate": 2,
            "evaluate_every": 5,
            "decay": "wsd",
            "warm_up_share": 0.2,
        },
        "quantizer": {"method": "allocated", "bits": 2},
        "exchange": {"reduction": "scatter_reduce", "error_feedback": True},
    },
    "bfloat16": {
        "model": {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.2, "dtype": "bf16"},
        "quantizer": {"method": "alq", "bucket_size": 64, "update_at": [2, 9], "samples": 3},
        "optimizer": {"name": "muon", "lr": 0.01, "weight_decay": 0.1, "decayed": "matrices", "clip_norm": 0.5},
        "schedule": {"iterations": 14, "batch_size": 8, "evaluate_every": 5, "decay": "wsd", "warm_up_share": 0.2},
        "exchange": {"error_feedback": True},
    },
    "moments in bfloat16": {
        "model": {"name": "mlp", "layers": [32], "dtype": "bf16"},
        "quantizer": {"method": "eden", "bits": 2, "bucket_size": 64},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "exchange": {"precondition": "optimizer"},
    },
    "alone": {
        "quantizer": {"method": "alq", "bucket_size": 64, "update_at": [0, 2], "samples": 2},
        "exchange": {"every": 3, "error_feedback": True, "outer": {"optimizer": "nesterov", "lr": 0.7}},
    },
    "alone in fragments": {
        "quantizer": {"method": "eden", "bits": 2, "bucket_size": 64},
        "optimizer": {"name": "adamw", "lr": 0.01, "clip_norm": 0.5},
        "exchange": {
            "every": 5,
            "outer": {"optimizer": "adam", "lr": 0.1},
            "fragments": 2,
            "overlap": 3,
            "mixing": 0.5,
            "reduction": "scatter_reduce",
            "precondition": True,
            "skip": ["norm"],
        },
        "telemetry": {"every": 4, "moments": True},
    },
    "alone in bfloat16": {
        "model": {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.2, "dtype": "bf16"},
        "quantizer": {"method": "full_precision"},
        "exchange": {"every": 4, "overlap": 3, "outer": {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0}},
    },
    "hosts": {
        "quantizer": {"method": "alq", "bucket_size": 64, "update_at": [2, 9], "samples": 3},
        "exchange": {
            "reduction": "hierarchical",
            "hosts": 2,
            "within": "bf16",
            "error_feedback": True,
            "skip": ["norm"],
        },
        "workers": 4,
    },
    "hosts alone": {
        "quantizer": {"method": "eden", "bits": 2, "bucket_size": 64},
        "exchange": {"reduction": "hierarchical", "hosts": 2, "every": 3, "overlap": 2},
        "workers": 4,
    },
    "powersgd alone": {
        "quantizer": {"method": "powersgd", "rank": 2, "start_iteration": 2},
        "exchange": {"every": 2, "fragments": 2},
    },
    "powersgd": {"quantizer": {"method": "powersgd", "rank": 2, "start_iteration": 3}},
    "post-local": {
        "quantizer": {"method": "post_local_sgd", "start_iteration": 5},
        "exchange": {"every": 3},
        "optimizer": {"name": "adamw", "lr": 0.01, "clip_norm": 0.5},
        "schedule": {"iterations": 14, "batch_size": 8, "accumulate": 2, "evaluate_every": 5, "on_nonfinite": "skip"},
    },
    "sgd": {"quantizer": {"method": "sgd"}},
}


def trial(kind: str = "alq", **changes) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.2},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
        "schedule": {"iterations": 14, "batch_size": 8, "evaluate_every": 5, "on_nonfinite": "skip"},
        "exchange": {"bucket_cap_mb": 0.1},
        "telemetry": {"every": 3},
        "workers": 2,
    }
    for key, value in METHODS[kind].items():
        config[key] = config.get(key, {}) | value if key == "exchange" else value
    return Trial.model_validate(config | changes)


def train(rank: int, kind: str, folder: str, every: int = 4, kill_at: int = 0) -> dict:
    """Every report without its times, by iteration. kill_at: the step after which every rank is killed."""
    reports: dict[int, dict] = {}
    steps = 0

    def note(report: Report) -> None:
        untimed = {key: value for key, value in report.metrics.items() if not key.startswith("time/")}
        levels = {"levels": report.levels.document()} if report.levels else {}
        reports.setdefault(report.iteration, {}).update(untimed | levels)

    def after_step(_) -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            dist.barrier()  # rank 0 may still be writing a checkpoint, and is ended with the first that is killed
            os.kill(os.getpid(), signal.SIGKILL)

    run_worker(trial(kind), note, torch.device("cpu"), 1, checkpoints=Checkpoints(folder, every), after_step=after_step)
    return reports


def same(one, other) -> bool:
    """Equality to the bit of nested plain data and tensors."""
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype
            and torch.equal(
                one.contiguous().view(torch.uint8) if one.dim() else one,
                other.contiguous().view(torch.uint8) if other.dim() else other,
            )
        ) or (not one.dim() and bool(one.isnan()) and bool(other.isnan()))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def last(folder: Path) -> dict:
    document = read_checkpoint(sorted(folder.glob("step-*.pt"))[-1], torch.device("cpu"))
    del document["shared"]["seconds"]
    return document


CASES = [(kind, world, cut) for kind in METHODS for world in (1, 2) for cut in ((3, 10) if kind == "alq" else (6,))]
CASES = [case for case in CASES if case[:2] not in (("sgd", 2), ("post-local", 1)) and not case[0].startswith("hosts")]
CASES += [("hosts", 4, 6), ("hosts alone", 4, 6), ("hosts alone", 4, 13)]
CASES += [("alq", 2, 4), ("alq", 1, 13), ("post-local", 2, 10)]
CASES += [("alone", 2, 10), ("alone", 1, 13), ("alone in fragments", 2, 9), ("alone in fragments", 2, 13)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that were never stopped, by (kind, world): reports of every rank, folder."""
    known = {}

    def of(kind: str, world: int):
        if (kind, world) not in known:
            folder = tmp_path_factory.mktemp(f"{kind}-{world}")
            known[kind, world] = run_ranks(train, world, kind, str(folder)), folder
        return known[kind, world]

    return of


def _seldom(kind: str, world: int, cut: int) -> bool:
    """Cases that have siblings among the others: every method with the most processes it has, alq alone, too."""
    return (world == 1 and kind not in ("alq", "sgd")) or (kind, world, cut) in (("alq", 1, 3), ("alq", 1, 10))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "world", "cut"),
    [pytest.param(*case, marks=pytest.mark.slow) if _seldom(*case) else case for case in CASES],
)
def test_killed_and_continued_is_never_stopped(whole, tmp_path, kind, world, cut):
    """SIGKILL after `cut` steps, checkpoints every 4."""
    expected, folder = whole(kind, world)
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(train, world, kind, str(tmp_path), 4, cut)
    continued = run_ranks(train, world, kind, str(tmp_path))
    first = cut // 4 * 4
    for found, wanted in zip(continued, expected, strict=True):
        assert min(found) > first
        assert found == {iteration: metrics for iteration, metrics in wanted.items() if iteration > first}
    assert same(last(tmp_path), last(folder))
    best = [read_checkpoint(where / "best.pt", torch.device("cpu")) for where in (tmp_path, folder)]
    assert same(best[0]["shared"]["network"], best[1]["shared"]["network"])


@pytest.mark.processes
def test_exchanges_are_under_way_at_the_checkpoints_that_are_continued_from(whole):
    """Else the cases above would not try it."""
    _, folder = whole("alone in fragments", 1)
    flights = read_checkpoint(folder / "step-0000000012.pt", torch.device("cpu"))["shared"]["flights"]
    assert [flight["due"] for flight in flights] == [13]
    assert flights[0]["means"]


def alone(folder: Path, kind: str = "alq", **more) -> dict:
    return train(0, kind, str(folder), **more)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A run of one process that has ended: its reports, its folder."""
    folder = tmp_path_factory.mktemp("finished")
    return alone(folder), folder


@pytest.fixture
def finished(once, tmp_path):
    """Its reports, and a folder as it left it."""
    return once[0], Path(shutil.copytree(once[1], tmp_path / "finished"))


def test_the_last_and_the_best_are_kept_and_nothing_aside(finished):
    _, folder = finished
    assert sorted(file.name for file in folder.iterdir()) == ["best.pt", "step-0000000012.pt", "step-0000000014.pt"]


def test_checkpoints_change_nothing(finished):
    reports, _ = finished
    final = run_worker(trial(), lambda report: None, torch.device("cpu"), 1)
    assert reports[14]["test/loss"] == final["test/loss"]


def test_a_finished_run_only_reports_its_end_again(finished):
    wanted, folder = finished
    assert alone(folder) == {14: wanted[14]}


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit", "foreign"])
def test_a_corrupt_last_checkpoint_falls_back_to_the_one_before(finished, damage):
    wanted, folder = finished
    newest = sorted(folder.glob("step-*.pt"))[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {
        "truncated": bytes(content[: len(content) // 2]),
        "empty": b"",
        "bit": bytes(content),
        "foreign": b"PK\x03\x04" + bytes(100),
    }[damage]
    newest.write_bytes(damaged)
    (folder / ".step-0000000013.pt.1.tmp").write_bytes(b"half")
    with pytest.raises(CorruptCheckpointError):
        read_checkpoint(newest, torch.device("cpu"))
    with pytest.warns(UserWarning, match="falling back to the checkpoint before"):
        found = alone(folder)
    assert found == {iteration: metrics for iteration, metrics in wanted.items() if iteration > 12}
    assert not list(folder.glob(".*.tmp"))


def test_without_a_whole_checkpoint_a_run_starts_anew(tmp_path):
    (tmp_path / "step-0000000004.pt").write_bytes(b"nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert min(alone(tmp_path)) == 1


def test_checkpoints_of_another_trial_are_refused(finished):
    _, folder = finished
    with pytest.raises(CheckpointError, match="another configuration"):
        alone(folder, kind="adam")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"can be written to .*file/below: .*choose another folder"):
        alone(tmp_path / "file" / "below")


FILE = {
    "name": "standalone",
    "base": {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "layers": [16]},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"iterations": 20, "batch_size": 16, "evaluate_every": 10},
        "workers": 2,
        "quantizer": {"method": "alq", "bucket_size": 128, "update_at": [0, 5]},
        "telemetry": {"every": 5},
    },
    "sweep": [{"matrix": {"quantizer.method": ["alq", "qsgd_inf"]}}],
}


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "standalone.yaml"
    path.write_text(yaml.safe_dump(FILE, sort_keys=False))
    return path


def test_train_alone_and_under_torchrun_are_the_same_run(file, tmp_path):
    """One process with both workers; two of torchrun's; no Ray, no MLflow imported."""
    code = (
        "import sys\nfrom lqray.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "assert not {'ray', 'mlflow'} & set(sys.modules)\n"
    )
    arguments = ["train", str(file), "--trial", "alq", "--metrics"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    subprocess.run([sys.executable, "-c", code, *arguments, str(one)], check=True, env=environment)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, "-m", "lqray", *arguments, str(two)], check=True, env=environment)
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in (one, two)]
    for left, right in zip(*lines, strict=True):
        assert left["iteration"] == right["iteration"]
        assert left.get("quantizer/level/1") == right.get("quantizer/level/1")
        if "test/loss" in left:
            assert left["test/loss"] == pytest.approx(right["test/loss"], rel=1e-6)
    assert lines[0][-1]["test/accuracy"] == lines[1][-1]["test/accuracy"]


def test_train_finds_its_trial_or_says_which_there_are(file, tmp_path):
    trials = json.loads(CliRunner().invoke(main, ["expand", str(file), "--format", "json"]).output)
    traces = ["--profile", str(tmp_path / "traces")]
    done = CliRunner().invoke(
        main,
        ["train", str(file), "--trial", trials[1]["id"], "--checkpoints", f"{tmp_path}/kept", *traces],
    )
    assert done.exit_code == 0, done.output
    assert "step 20/20  test loss" in done.output
    assert "traceEvents" in json.loads((tmp_path / "traces" / "rank-0.json").read_text())
    assert (tmp_path / "kept" / "step-0000000020.pt").exists()
    unclear = CliRunner().invoke(main, ["train", str(file)])
    assert unclear.exit_code == 2
    assert "has 2 trials; choose one of: alq, qsgd_inf" in unclear.output
    wrong = CliRunner().invoke(main, ["train", str(file), "--trial", "qsgd"])
    assert wrong.exit_code == 2
    assert "did you mean 'qsgd_inf'?" in wrong.output
    other = CliRunner().invoke(main, ["train", str(file), "--trial", "alq", "--checkpoints", str(tmp_path / "kept")])
    assert other.exit_code == 2
    assert "another configuration" in other.output


def test_train_refuses_a_checkpoint_in_another_form_and_names_both(file, tmp_path):
    kept = tmp_path / "kept"
    arguments = ["train", str(file), "--trial", "alq", "--checkpoints", str(kept), "--checkpoint-every", "10"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    newest = kept / "step-0000000020.pt"
    newest.write_bytes(newest.read_bytes().replace(b"checkpoint 1\n", b"checkpoint 2\n", 1))
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert "in version 2 of the form; this lqray reads and writes version 1" in refused.output
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def test_progress_of_before_there_were_other_tasks_is_read():
    saved = {"best_accuracy": 0.5, "skipped": 2, "in_row": 1, "lost": ("test/f1",)}
    assert Progress.of(saved) == Progress(0.5, 2, 1, ("test/f1",))
    assert Progress.of(vars(Progress(-1.5))) == Progress(-1.5)
