"""What is found in a folder of checkpoints: what a run continues from, and what stays of all else."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from lqray.experiment.schema import Trial
from lqray.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    CheckpointStorageAwayError,
    CheckpointVersionError,
    read_checkpoint,
)
from lqray.training.checkpoint_file import written_form
from lqray.training.export import trained_network
from lqray.training.models import build_model
from lqray.training.storage import LocalFolder, NoSpaceError, open_folder
from tests.testing.object_store import object_store, why_not

needs_s3 = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def group():
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    with object_store(tmp_path_factory.mktemp("s3")) as environment, pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        yield


@pytest.fixture(params=["local", pytest.param("s3", marks=needs_s3)])
def address(request, tmp_path) -> str:
    if request.param == "local":
        return str(tmp_path)
    request.getfixturevalue("s3")
    return f"s3://bucket/{tmp_path.name}"


def checkpoints(address, **more) -> Checkpoints:
    return Checkpoints(address, keep=2, **more)


def save(to: Checkpoints, *iterations: int, best: bool = False) -> None:
    for iteration in iterations:
        to.save("t", iteration, {"weight": torch.full((3,), float(iteration))}, {}, dist.group.WORLD, best)


def load(found: Checkpoints) -> int | None:
    loaded = found.load("t", dist.group.WORLD, CPU)
    return loaded and loaded[0]


def quietly(found: Checkpoints) -> int | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(found)


def step(iteration: int) -> str:
    return f"step-{iteration:010d}.pt"


def names(address) -> list[str]:
    return open_folder(address).names("*.pt")


def truncate(address, *wanted: str) -> None:
    folder = open_folder(address)
    for name in wanted:
        folder.write(name, folder.read(name)[:-40])


def test_damaged_ones_do_not_outrank_what_is_written_after_them(address):
    save(checkpoints(address), 20, 30)
    truncate(address, step(20), step(30))
    again = checkpoints(address)
    assert quietly(again) is None
    save(again, 10)
    assert load(checkpoints(address)) == 10
    assert names(address) == [f"broken-{step(20)}", f"broken-{step(30)}", step(10)]
    assert len(again.take_remarks()) == 3
    assert not again.take_remarks()
    more = checkpoints(address)
    assert load(more) == 10
    save(more, 20, 30, 40)
    assert names(address) == [f"broken-{step(20)}", f"broken-{step(30)}", step(30), step(40)]


def test_those_damaged_at_one_name_all_stay(tmp_path):
    for turn in range(3):
        save(checkpoints(tmp_path), 10)
        truncate(tmp_path, step(10))
        assert quietly(checkpoints(tmp_path)) is None, turn
    assert names(tmp_path) == [f"broken-2-{step(10)}", f"broken-3-{step(10)}", f"broken-{step(10)}"]


def test_the_best_is_what_is_left(address):
    save(checkpoints(address), 20, best=True)
    save(checkpoints(address), 30)
    truncate(address, step(30))
    with pytest.warns(UserWarning, match="falling back to the checkpoint before"):
        assert load(checkpoints(address)) == 20


def test_later_ones_that_stay_do_not_cost_what_is_written(tmp_path, monkeypatch):
    """Where they cannot even be renamed."""
    save(checkpoints(tmp_path), 20, 30)
    truncate(tmp_path, step(20), step(30))

    def refuse(self, name, other):
        raise PermissionError(errno.EPERM, "Operation not permitted", name)

    monkeypatch.setattr(LocalFolder, "rename", refuse)
    again = checkpoints(tmp_path)
    assert quietly(again) is None
    save(again, 5, 10)
    assert names(tmp_path) == [step(number) for number in (5, 10, 20, 30)]
    assert quietly(checkpoints(tmp_path)) == 10
    with pytest.raises(CheckpointError, match="Operation not permitted"):
        save(again, 20)
    assert len((tmp_path / step(20)).read_bytes()) > 100


def directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("kept")


STRANGE = {
    "a directory": directory,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"l"),
    "another program's": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500)),
    "a terabyte of nothing": lambda path: (path.touch(), os.truncate(path, 2**40)),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("older", [True, False])
def test_whatever_is_wrong_with_it_it_is_passed_over(tmp_path, kind, older):
    if older:
        save(checkpoints(tmp_path), 10)
    STRANGE[kind](tmp_path / step(20))
    found = checkpoints(tmp_path)
    with pytest.warns(UserWarning, match=step(20)):
        assert load(found) == (10 if older else None)
    assert (tmp_path / f"broken-{step(20)}").is_symlink() or (tmp_path / f"broken-{step(20)}").exists()
    save(found, 20, 30)
    assert load(checkpoints(tmp_path)) == 30


def test_a_terabyte_after_a_whole_one_is_not_read(tmp_path):
    save(checkpoints(tmp_path), 10, 20)
    os.truncate(tmp_path / step(20), 2**40)
    assert quietly(checkpoints(tmp_path)) == 10


@pytest.mark.parametrize(("code", "wanted"), [(errno.EACCES, CheckpointError), (errno.EIO, CheckpointStorageAwayError)])
def test_one_that_cannot_be_read_now_stays_where_it_is(tmp_path, monkeypatch, code, wanted):
    save(checkpoints(tmp_path), 10, 20)
    unreadable = {step(20)}
    whole = LocalFolder._opened

    def opened(self, name):
        if name in unreadable:
            raise OSError(code, os.strerror(code), str(self.path / name))
        return whole(self, name)

    monkeypatch.setattr(LocalFolder, "_opened", opened)
    found = checkpoints(tmp_path)
    with pytest.warns(UserWarning, match=f"{step(20)} cannot be read, and stays"):
        assert load(found) == 10
    unreadable.add(step(10))
    with pytest.raises(wanted, match="no checkpoint in .* can be read"):
        quietly(checkpoints(tmp_path))
    unreadable.clear()
    assert load(checkpoints(tmp_path)) == 20


def test_a_folder_that_may_not_be_looked_into_is_not_an_empty_one(tmp_path, monkeypatch):
    save(checkpoints(tmp_path), 10)

    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CheckpointStorageAwayError, match="cannot be looked into"):
        load(checkpoints(tmp_path))


def test_a_checksum_that_is_right_does_not_make_a_checkpoint(tmp_path):
    save(checkpoints(tmp_path), 10)
    LocalFolder(tmp_path).write(step(20), *written_form({"iteration": 20}))
    assert quietly(checkpoints(tmp_path)) == 10


@pytest.mark.parametrize("name", [step(10), step(20), "best.pt"])
def test_another_form_is_refused_and_nothing_is_changed(address, name):
    save(checkpoints(address), 10, 20)
    save(checkpoints(address), 20, best=True)
    folder = open_folder(address)
    folder.write(name, folder.read(name).replace(b"checkpoint 1\n", b"checkpoint 2\n", 1))
    truncate(address, *({step(20)} - {name}))
    before = {one: folder.read(one) for one in names(address)}
    with pytest.raises(CheckpointVersionError, match=r"in version 2 of the form; .* reads and writes version 1"):
        quietly(checkpoints(address))
    assert {one: folder.read(one) for one in names(address)} == before


def test_another_runs_are_set_aside_and_stay(address):
    save(checkpoints(address, run="aaaaaaaaaa"), 10, 20)
    save(checkpoints(address, run="aaaaaaaaaa"), 20, best=True)
    assert load(checkpoints(address, run="aaaaaaaaaa")) == 20
    other = checkpoints(address, run="bbbbbbbbbb")
    with pytest.warns(UserWarning, match="is of run aaaaaaaaaa, this is run bbbbbbbbbb: it is not continued from"):
        assert load(other) is None
    kept = [f"foreign-aaaaaaaa-{one}" for one in ("best.pt", step(10), step(20))]
    assert names(address) == kept
    save(other, 10, 20, 30)
    save(other, 30, best=True)
    assert names(address) == ["best.pt", *kept, step(20), step(30)]
    assert "is of run aaaaaaaaaa" in "\n".join(other.take_remarks())
    assert read_checkpoint(f"{address}/{kept[-1]}", CPU)["run"] == "aaaaaaaaaa"
    assert load(checkpoints(address, run="bbbbbbbbbb")) == 30


def unnamed(address, *iterations: int) -> None:
    """As versions wrote them that did not name the run."""
    for iteration in iterations:
        document = {"trial": "t", "iteration": iteration, "shared": {}, "ranks": [{}]}
        open_folder(address).write(step(iteration), *written_form(document))


def test_those_without_a_run_are_a_continued_ones(tmp_path):
    unnamed(tmp_path, 10, 20)
    assert load(checkpoints(tmp_path, run="r", continued=True)) == 20
    assert load(checkpoints(tmp_path)) == 20
    assert quietly(checkpoints(tmp_path, run="r", continued=False)) is None
    assert names(tmp_path) == [f"foreign-{step(10)}", f"foreign-{step(20)}"]


def test_what_nobody_records_may_go_on_from_a_runs_and_leaves_it_whole(tmp_path):
    """`lqray train` in a sweep's folder."""
    save(checkpoints(tmp_path, run="r"), 10, 20)
    save(checkpoints(tmp_path, run="r"), 20, best=True)
    alone = checkpoints(tmp_path)
    assert load(alone) == 20
    with pytest.warns(UserWarning, match="not of this run: kept as foreign-r-best.pt"):
        save(alone, 30, best=True)
    save(alone, 30, 40, 50)
    assert [one for one in names(tmp_path) if one.startswith("step")] == [step(one) for one in (10, 20, 40, 50)]
    assert quietly(checkpoints(tmp_path, run="r", continued=True)) == 20


def test_what_another_process_wrote_meanwhile_is_written_over_only_if_it_is_this_runs(tmp_path):
    one, other = checkpoints(tmp_path, run="r"), checkpoints(tmp_path, run="r")
    save(other, 10)
    save(one, 10)
    assert names(tmp_path) == [step(10)]
    directory(tmp_path / step(20))
    with pytest.warns(UserWarning, match=f"kept as foreign-{step(20)}"):
        save(one, 20)
    assert load(checkpoints(tmp_path, run="r")) == 20


def test_an_old_one_that_cannot_be_removed_costs_nothing(tmp_path, monkeypatch):
    found = checkpoints(tmp_path)
    save(found, 10, 20)

    def refuse(self, name):
        raise PermissionError(errno.EPERM, "Operation not permitted", name)

    monkeypatch.setattr(LocalFolder, "remove", refuse)
    with pytest.warns(UserWarning, match="cannot be removed"):
        save(found, 30)
    assert load(checkpoints(tmp_path)) == 30


def test_a_full_disk_leaves_nothing_aside_and_what_was_there(tmp_path, monkeypatch):
    found = checkpoints(tmp_path)
    save(found, 10, 20)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        NoSpaceError, match=rf"{tmp_path}/{step(30)} takes [\d,]+ bytes.*[\d,]+ bytes free.*: free space"
    ):
        save(found, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == [step(10), step(20)]


@pytest.mark.processes
def test_tidying_up_leaves_what_is_being_written(tmp_path):
    """By another process; and takes what a killed one has left."""
    held = """
import os, sys
from pathlib import Path
from lqray.training.storage import LocalFolder
with LocalFolder(Path(sys.argv[1]))._aside("f") as (aside, stream):
    print(aside.name, flush=True)
    sys.stdin.read()
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    aside = tmp_path / writer.stdout.readline().strip()
    (tmp_path / ".folder.tmp").mkdir()
    LocalFolder(tmp_path).tidy()
    assert aside.exists()
    writer.kill()
    writer.communicate()
    LocalFolder(tmp_path).tidy()
    assert [path.name for path in tmp_path.iterdir()] == [".folder.tmp"]


def test_a_pipe_in_the_place_of_any_file_is_an_error_at_once(tmp_path):
    os.mkfifo(tmp_path / "undelivered.jsonl")
    with pytest.raises(OSError, match="Not a file"):
        LocalFolder(tmp_path).read("undelivered.jsonl")


def test_a_model_is_never_another_runs_or_an_older_one(tmp_path):
    chosen = Trial.model_validate(
        {
            "data": {"name": "gaussian_mixture"},
            "model": {"name": "mlp", "layers": [8]},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"iterations": 9, "batch_size": 16},
            "quantizer": {"method": "full_precision"},
        }
    )
    inputs = {"shape": [1, 1, 8], "classes": 2}
    network = build_model(chosen.model, (1, 1, 8), 2)
    shared = {"network": network.state_dict(), "inputs": inputs}
    for iteration in (8, 9):
        checkpoints(tmp_path, run="r").save(chosen.id, iteration, shared, {}, dist.group.WORLD)
    assert trained_network(chosen, str(tmp_path), "r")[1] == 9
    with pytest.raises(CheckpointError, match="is of run r, wanted is another"):
        trained_network(chosen, str(tmp_path), "another")
    (tmp_path / "step-final.pt").write_bytes(b"somebody's own")
    assert trained_network(chosen, str(tmp_path))[1] == 9
    truncate(tmp_path, step(9))
    with pytest.raises(CheckpointError, match="truncated"):
        trained_network(chosen, str(tmp_path))
