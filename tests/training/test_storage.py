"""Folders and object stores are one to a run: same files, same bits."""

import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from lqray.experiment.store import StorageError, storage_address
from lqray.training.checkpoint import CheckpointError, Checkpoints, CheckpointStorageAwayError, read_checkpoint
from lqray.training.storage import Folder, StorageAwayError, check_folder, open_folder
from tests.testing.object_store import object_store, why_not
from tests.testing.ranks import run_ranks
from tests.training.test_resume import same, train

needs_s3 = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """Environment of an object store's clients, this process's included."""
    if reason := why_not():
        pytest.skip(reason)
    with object_store(tmp_path_factory.mktemp("s3")) as environment, pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        yield environment


@pytest.fixture(params=["local", pytest.param("s3", marks=needs_s3)])
def folder(request, tmp_path) -> Folder:
    if request.param == "local":
        return open_folder(tmp_path / "deep" / "below")
    request.getfixturevalue("s3")
    return open_folder(f"s3://bucket/{tmp_path.name}/below")


def test_files_are_written_whole_read_listed_and_removed(folder):
    assert folder.names("*") == []
    with pytest.raises(FileNotFoundError):
        folder.read("a-1")
    folder.remove("a-1")
    check_folder(folder)
    folder.write("a-1", b"one", b"", b"two")
    folder.write("a-1", b"three")
    folder.write("b", b"")
    folder.write("a-0", os.urandom(100_000))
    assert folder.read("a-1") == b"three"
    assert folder.read("b") == b""
    assert folder.names("a-*") == ["a-0", "a-1"]
    open_folder(f"{folder}/a-below").write("a-2", b"")
    assert folder.names("a-?") == ["a-0", "a-1"]
    folder.remove("a-1")
    assert open_folder(str(folder)).names("*-?") == ["a-0"]


def test_a_reader_never_sees_half_a_file(folder):
    contents = [bytes([number]) * 200_000 for number in range(2)]
    folder.write("f", contents[0])
    over = threading.Event()

    def write() -> None:
        for number in range(40):
            folder.write("f", contents[number % 2])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not over.is_set():
        assert folder.read("f") in contents
        seen += 1
    writer.join()
    assert seen


@pytest.mark.processes
def test_killed_and_continued_from_an_object_store_is_never_stopped(s3, tmp_path):
    """SIGKILL after 6 steps, checkpoints every 4; beside the same run in a folder, never stopped."""
    address = f"s3://bucket/{tmp_path.name}"
    expected = run_ranks(train, 2, "alq", str(tmp_path))
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(train_at, 2, "alq", address, 6)
    assert open_folder(address).names("*") == ["best.pt", "step-0000000004.pt"]
    continued = run_ranks(train_at, 2, "alq", address)
    for found, wanted in zip(continued, expected, strict=True):
        assert found == {iteration: metrics for iteration, metrics in wanted.items() if iteration > 4}
    assert open_folder(address).names("*") == sorted(file.name for file in tmp_path.glob("[bs]*.pt"))
    for name in ("step-0000000014.pt", "best.pt"):
        here, there = (read_checkpoint(f"{place}/{name}", torch.device("cpu")) for place in (tmp_path, address))
        del here["shared"]["seconds"], there["shared"]["seconds"]
        assert same(here, there)


def train_at(rank: int, kind: str, address: str, kill_at: int = 0) -> dict:
    return train(rank, kind, address, 4, kill_at)


def test_addresses(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LQRAY_STORAGE", raising=False)
    assert storage_address(None) == f"{tmp_path}/lqray-storage"
    assert storage_address("x") == f"{tmp_path}/x"
    assert storage_address("file:///a/b/") == "/a/b"
    assert storage_address("s3://bucket/a/") == "s3://bucket/a"
    monkeypatch.setenv("LQRAY_STORAGE", "gs://mine/deep")
    assert storage_address(None) == "gs://mine/deep"
    assert storage_address("x") == f"{tmp_path}/x"
    monkeypatch.setenv("LQRAY_STORAGE", "ftp://mine")
    with pytest.raises(StorageError, match="variable LQRAY_STORAGE: found 'ftp://mine'; allowed: a folder.*s3://"):
        storage_address(None)
    for wrong, why in {"memory://x": "not shared", "s3://": "no bucket", "file://x": "absolute"}.items():
        with pytest.raises(StorageError, match=why):
            storage_address(wrong)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StorageError, match="needs the package gcsfs, on every machine: `pip install gcsfs`"):
        open_folder("gs://bucket/x")


@needs_s3
def test_a_store_that_does_not_let_us_in(s3, tmp_path):
    with pytest.raises(StorageError, match=r"nothing can be kept in s3://nowhere/x: .*\n  hint: does the bucket exist"):
        check_folder(open_folder("s3://nowhere/x"))
    with pytest.raises(StorageAwayError):
        open_folder("s3://nowhere/x").write("a", b"")
    with pytest.raises(CheckpointStorageAwayError, match="no checkpoint can be written to s3://nowhere/x"):
        train(0, "sgd", "s3://nowhere/x")
    with pytest.raises(StorageError, match=r"nothing can be kept in .*file/x: .*\n  hint: free space there"):
        (tmp_path / "file").write_text("")
        check_folder(open_folder(tmp_path / "file" / "x"))
    assert issubclass(CheckpointStorageAwayError, CheckpointError)
    assert Checkpoints(Path("x"), 3).folder == Path("x")
