"""Points that MLflow does not have are kept beside the checkpoint; what is damaged there is set aside."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lqray.orchestration.worker.reporter import Reporter
from lqray.orchestration.worker.task import Ack
from lqray.training.checkpoint import CheckpointError
from lqray.training.reports import Report
from tests.testing.reporters import Link, task


def test_what_mlflow_does_not_have_is_kept_beside_the_checkpoint(tmp_path):
    link = Link()
    reporter = Reporter(task(tmp_path), link, lambda line: None)
    for step in range(1, 11):
        reporter.report(Report(step, 100, {"a": float(step), "b": math.nan}, evaluated=step == 4))
    link.answer = Ack(delivered=4)
    reporter.secure()
    reporter.close()
    assert [point.step for point in link.sent] == list(range(1, 11))
    assert all(point.metrics == {"a": float(point.step)} for point in link.sent)

    other = Link()
    Reporter(task(tmp_path), other, lambda line: None).close()
    assert [point.step for point in other.sent] == list(range(5, 11))
    other.answer = Ack(delivered=6)
    again = Reporter(task(tmp_path), other, lambda line: None)
    again.secure()
    assert not (tmp_path / "undelivered.jsonl").exists()


def spooled(folder: Path) -> bytes:
    """A spool with steps 1 to 3."""
    reporter = Reporter(task(folder), Link(), lambda line: None)
    for step in range(1, 4):
        reporter.report(Report(step, 100, {"a": float(step)}))
    reporter.secure()
    return (folder / "undelivered.jsonl").read_bytes()


def taken_up(folder: Path, **changes) -> list[int]:
    link = Link()
    Reporter(replace(task(folder), **changes), link, lambda line: None).close()
    return [point.step for point in link.sent]


def test_a_spool_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / "undelivered.jsonl").write_bytes(spooled(tmp_path).partition(b"\n")[2])
    assert taken_up(tmp_path) == [1, 2, 3]


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (half, "its checksum differs"),
        (lambda content: content.replace(b"2.0", b"3.0"), "its checksum differs"),
        (lambda content: half(content.partition(b"\n")[2]), "its last line is cut off"),  # of an earlier version
        (lambda content: content.partition(b"\n")[2].replace(b'"step"', b'"stop"'), "no point of metrics"),
        (lambda content: b"\xff\xfe\n", "cut off or damaged"),
        (lambda content: content.replace(b'"t"', b'"u"', 1), "it is of trial u"),
        (lambda content: content.replace(b'"r"', b'"s"', 1), "run s; this is trial t, run r"),
        (lambda content: content.replace(b"points 1", b"points 2", 1), "its format is 'undelivered points 2'"),
    ],
)
def test_a_spool_that_is_not_its_own_or_not_whole_is_set_aside(tmp_path, damage, said):
    """Before, another trial's was recorded, and half a line failed the trial as its user's error. Checkpoints that lead
    past what the store has go with it: what was measured on the way to them might never be recorded."""
    spool = tmp_path / "undelivered.jsonl"
    spool.write_bytes(damage(spooled(tmp_path)))
    damaged = spool.read_bytes()
    for step in (10, 20, 30):
        (tmp_path / f"step-{step:010d}.pt").touch()
    with pytest.warns(UserWarning, match="undelivered.jsonl is not used: ") as warned:
        assert taken_up(tmp_path, recorded=20) == []
    assert said in str(warned[0].message)
    assert sorted(file.name for file in tmp_path.glob("[!u]*")) == ["step-0000000010.pt", "step-0000000020.pt"]
    aside = sorted(file.name.partition("-")[2][9:] for file in tmp_path.glob("unused-*"))
    assert aside == ["step-0000000030.pt", "undelivered.jsonl"]
    assert next(tmp_path.glob("unused-*-undelivered.jsonl")).read_bytes() == damaged
    assert taken_up(tmp_path, recorded=20) == []


@pytest.mark.parametrize("what", ["folder", "loop", "link to nothing"])
def test_a_spool_that_is_no_file_is_set_aside(tmp_path, what):
    spool = tmp_path / "undelivered.jsonl"
    if what == "folder":
        spool.mkdir()
    else:
        spool.symlink_to("undelivered.jsonl" if what == "loop" else "nothing")
    with pytest.warns(UserWarning, match="is not used"):
        assert taken_up(tmp_path) == []
    assert list(tmp_path.glob("unused-*"))


def test_a_spool_that_cannot_be_written_says_where(tmp_path):
    reporter = Reporter(task(tmp_path / "file" / "below"), Link(), lambda line: None)
    (tmp_path / "file").write_text("")
    reporter.report(Report(1, 100, {"a": 1.0}))
    with pytest.raises(CheckpointError, match=f"cannot be kept in {tmp_path}/file/below: .*free space there"):
        reporter.secure()
