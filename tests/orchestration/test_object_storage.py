"""A sweep whose files are in an object store."""

import sys

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.orchestration.worker.logs import read_logs
from lqray.training.storage import open_folder
from tests.testing.object_store import object_store, why_not
from tests.testing.sweeps import TEXT, killing, recorded, run, start, wait_for, write


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.slow
def test_a_sweep_with_its_files_in_an_object_store(tmp_path, monkeypatch):
    """Killed, and continued: from the checkpoint there, with the log going on."""
    path = write(
        tmp_path, 300, text=TEXT.replace("[1, 2, 3]", "[1]").replace("storage: {folder: storage, ", "storage: {")
    )
    monkeypatch.setenv("LQRAY_STORAGE", "s3://bucket/mine/")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with object_store(tmp_path) as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        process = start(path, "--launcher", "inline")
        sweep = "s3://bucket/mine/sweep"
        with killing(process):
            ids = lambda: open_folder(sweep).names("*[0-9a-f]")  # noqa: E731
            wait_for(path, lambda: any(open_folder(f"{sweep}/{one}").names("step-*.pt") for one in ids()))
        assert "1 to continue" in run(path, "--launcher", "inline", "--set", "storage.keep=1")
        ((name, one),) = recorded(f"sqlite:///{tmp_path}/lqray.db").items()
        assert one.info.status == "FINISHED"
        address = one.data.tags["lqray.folder"]
        assert address.startswith("s3://bucket/mine/sweep/")
        names = open_folder(address).names("[!u]*")  # without undelivered.jsonl, which may be there
        assert names == ["best.pt", "claim", "rank-0.log", "rank-1.log", "step-0000000300.pt"]
        assert [(rank, text.count(f", rank {rank}, ")) for rank, text in read_logs(address)] == [(0, 2), (1, 2)]
        monkeypatch.chdir(tmp_path)
        shown = CliRunner().invoke(main, ["logs", name, "--rank", "0"])
        assert f"==> {address}/rank-0.log <==" in shown.output
        assert "step 300/300" in shown.output
        assert not list((tmp_path / "tmp").rglob("rank-*.log"))
    gone = CliRunner().invoke(main, ["logs", name])
    assert gone.exit_code == 2
    assert f"the logs of {name} in {address} cannot be read" in gone.output


def test_storage_that_cannot_be_is_said_before_anything_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, 10, text=TEXT.replace("folder: storage", "folder: ftp://host/x"))
    wrong = CliRunner().invoke(main, ["expand", path.name])
    assert wrong.exit_code == 2
    assert (
        "sweep.yaml:14: storage.folder\n  found:   'ftp://host/x'\n  allowed: a folder, file:///FOLDER" in wrong.output
    )
    path.write_text(path.read_text().replace("ftp://host/x", "gs://bucket/x"))
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    missing = CliRunner().invoke(main, ["run", path.name, "--launcher", "inline"])
    assert missing.exit_code == 2
    assert "needs the package gcsfs" in missing.output
