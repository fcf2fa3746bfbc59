"""Which files go to a cluster, and which lqray is among them."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lqray.orchestration.code_version import digest_of
from lqray.orchestration.remote import package as packing
from lqray.orchestration.remote.package import pack
from lqray.orchestration.remote.submit import Sweep
from lqray.orchestration.remote.working_tree import PackageError, working_tree
from lqray.orchestration.submitted import FILE, Sender

ROOT = Path(__file__).resolve().parents[3]


def lqray_in(folder: Path) -> Path:
    """A package that looks like lqray."""
    (folder / "lqray/orchestration").mkdir(parents=True)
    (folder / "lqray/__init__.py").write_text("")
    (folder / "lqray/orchestration/__init__.py").write_text("# edited\n")
    return folder


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def mono(tmp_path):
    """A repository in which lqray is a part, with a commit, and an edit after it."""
    folder = tmp_path / "mono"
    lqray_in(folder / "lq")
    (folder / "other").mkdir()
    (folder / "other/big.txt").write_text("not of lqray")
    (folder / "lq/e.yaml").write_text("e")
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    (folder / "lq/lqray/orchestration/new.py").write_text("")
    return folder


@pytest.mark.parametrize("place", ["lq", "lq/lqray", ".", "other"])
def test_the_lqray_of_a_larger_repository_is_the_root_of_what_is_sent(mono, place):
    tree = working_tree(mono / place)
    assert (tree.root, tree.around, tree.has_lqray) == (mono / "lq", mono, True)
    code = ("lqray/__init__.py", "lqray/orchestration/__init__.py", "lqray/orchestration/new.py")
    assert tree.code == code
    assert tree.names == ("e.yaml", *code)
    package = pack([mono / "lq/e.yaml", mono / "other/big.txt"], mono.parent / "a.zip", mono / place)
    assert package.experiments == ("e.yaml", "submitted/2/big.txt")


def test_of_several_lqrays_the_one_around_here_is_meant(mono):
    lqray_in(mono / "old")
    assert working_tree(mono / "lq").root == mono / "lq"
    assert working_tree(mono / "old/lqray").root == mono / "old"
    with pytest.raises(PackageError, match=r"holds lqray 2 times, in lq, old"):
        working_tree(mono / "other")


def test_without_git_the_folder_above_that_holds_lqray_is_the_tree(tmp_path):
    lqray_in(tmp_path / "tree")
    (tmp_path / "tree/experiments").mkdir()
    (tmp_path / "tree/experiments/e.yaml").write_text("e")
    tree = working_tree(tmp_path / "tree/experiments")
    assert (tree.root, tree.has_lqray) == (tmp_path / "tree", True)
    package = pack([Path("e.yaml")], tmp_path / "a.zip", tmp_path / "tree/experiments")
    assert package.experiments == ("experiments/e.yaml",)
    assert package.submitted.code == digest_of(tmp_path / "tree/lqray", (tmp_path / "tree/lqray").rglob("*.py"))


def test_a_tree_without_lqray_says_so(tmp_path):
    (tmp_path / "e.yaml").write_text("e")
    tree = working_tree(tmp_path)
    assert (tree.root, tree.has_lqray, tree.names) == (tmp_path, False, ("e.yaml",))
    assert pack([tmp_path / "e.yaml"], tmp_path / "a.zip", tmp_path).submitted.code == ""


def test_what_a_file_outside_the_tree_needs_beside_it_comes_with_it(mono, tmp_path):
    beside = {"my_nets.py": tmp_path / "my_nets.py", "deep/x.py": tmp_path / "deep/x.py", ".env": tmp_path / ".env"}
    (tmp_path / "deep").mkdir()
    for file in (*beside.values(), tmp_path / "unrelated.py"):
        file.write_text("x")
    (tmp_path / "e.yaml").write_text("e")
    files = [mono / "lq/e.yaml", tmp_path / "e.yaml"]
    package = pack(files, tmp_path / "a.zip", mono / "lq", beside=({"e.py": mono / "lq/e.py"}, beside))
    assert package.experiments == ("e.yaml", "submitted/2/e.yaml")
    sent = {"submitted/2/e.yaml", "submitted/2/my_nets.py", "submitted/2/deep/x.py"}
    assert {name for name in package.names if name.startswith("submitted/")} == sent
    assert "e.py" not in package.names


def test_a_repository_that_git_cannot_read_is_an_error_and_not_an_empty_tree(mono):
    (mono / ".git/index").write_bytes(b"damaged")
    with pytest.raises(PackageError, match=r"`git ls-files .*` says: .*index"):
        working_tree(mono)


def test_submodules_and_repositories_within_come_along_and_what_is_not_checked_out_is_named(mono, tmp_path):
    for name in ("part", "gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.py").write_text("p")
        git(tmp_path, "init", "-q", str(tmp_path / name))
        git(tmp_path / name, "add", ".")
        git(tmp_path / name, "commit", "-qm", "p")
        git(mono, "submodule", "add", "-q", str(tmp_path / name), f"lq/{name}")
    git(mono, "commit", "-qm", "parts")
    git(mono, "submodule", "deinit", "-f", "lq/gone")
    git(mono, "init", "-q", "lq/untracked")
    (mono / "lq/untracked/u.py").write_text("u")
    tree = working_tree(mono / "lq")
    assert {"part/p.py", "untracked/u.py"} <= set(tree.names)
    assert tree.absent == ("lq/gone/",)


def test_a_conflict_that_is_mended_and_not_yet_added_counts_once(mono):
    """git lists such a file once for each of its versions."""
    file = mono / "lq/lqray/orchestration/__init__.py"
    for branch in ("one", "two"):
        git(mono, "checkout", "-q", "-B", branch, "HEAD" if branch == "one" else "HEAD~1")
        file.write_text(f"# {branch}\n")
        git(mono, "commit", "-qam", branch)
    with pytest.raises(subprocess.CalledProcessError):
        git(mono, "merge", "one")
    file.write_text("# mended\n")
    tree = working_tree(mono)
    assert len(set(tree.names)) == len(tree.names)
    package = pack([mono / "lq/e.yaml"], mono.parent / "a.zip", mono)
    job = mono.parent / "job"
    zipfile.ZipFile(package.path).extractall(job)
    assert package.submitted.code == digest_of(job / "lqray", (job / "lqray").rglob("*.py"))


def test_equal_trees_are_equal_bytes_whoever_sends_them_and_how(mono, monkeypatch):
    pack([mono / "lq/e.yaml"], mono.parent / "a.zip", mono)
    monkeypatch.setattr(sys, "argv", ["lqray", "submit", "e.yaml", "--only", "x"])
    monkeypatch.setenv("USER", "bob")
    pack([mono / "lq/e.yaml"], mono.parent / "b.zip", mono)
    assert (mono.parent / "a.zip").read_bytes() == (mono.parent / "b.zip").read_bytes()


def test_what_another_submission_left_is_not_sent_again(mono):
    (mono / "lq" / FILE).write_text("of another")
    package = pack([mono / "lq/e.yaml"], mono.parent / "a.zip", mono)
    assert package.names.count(FILE) == 1
    assert json.loads(zipfile.ZipFile(package.path).read(FILE))["code"] == package.submitted.code


def test_a_repository_that_leads_nowhere_is_an_error(tmp_path):
    """As of a worktree that was copied into a container."""
    (tmp_path / "e.yaml").write_text("e")
    (tmp_path / ".git").write_text("gitdir: /nowhere/worktrees/x\n")
    with pytest.raises(PackageError, match="nowhere/worktrees"):
        working_tree(tmp_path)


def test_an_older_lqray_is_known_as_one(mono):
    assert not working_tree(mono).tells
    (mono / "lq/lqray/orchestration/submitted.py").write_text("")
    assert working_tree(mono).tells


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have no such names")
@pytest.mark.parametrize("repository", [True, False])
def test_a_name_that_is_not_utf8_is_an_error_that_shows_it(tmp_path, repository):
    (tmp_path / "e.yaml").write_text("e")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("")
    if repository:
        git(tmp_path, "init", "-q")
    with pytest.raises(PackageError, match=r"caf\\xe9"):
        pack([tmp_path / "e.yaml"], tmp_path.parent / "a.zip", tmp_path)
    elsewhere = Path(os.fsdecode(os.fsencode(tmp_path.parent) + b"/t\xe9.yaml"))
    elsewhere.write_text("")
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).unlink()
    with pytest.raises(PackageError, match=r"t\\xe9"):
        pack([elsewhere], tmp_path.parent / "a.zip", tmp_path)


def test_a_file_that_vanishes_is_left_out_and_an_experiment_is_not(mono, monkeypatch, tmp_path):
    tree = working_tree(mono)
    (mono / "lq/lqray/orchestration/new.py").unlink()
    monkeypatch.setattr(packing, "working_tree", lambda place: tree)
    package = pack([mono / "lq/e.yaml"], tmp_path / "a.zip", mono)
    assert "lqray/orchestration/new.py" not in package.names
    (mono / "lq/e.yaml").unlink()
    with pytest.raises(PackageError, match="vanished"):
        pack([mono / "lq/e.yaml"], tmp_path / "a.zip", mono)
    assert not (tmp_path / "a.zip").exists()


def test_results_are_never_sent(mono):
    results = ["lqray.db", "lqray.db-wal", "lqray-artifacts/1/a.png", "lqray-storage/x/1/rank-0.log", "mlruns/0/m"]
    results += ["own/x/12ab/step-100.pt", "own/x/12ab/best.pt", "own/x/12ab/rank-0.log"]
    for name in [*results, "weights/best.pt", "own/readme.txt"]:
        file = mono / "lq" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    tree = working_tree(mono)
    assert set(tree.results) == set(results)
    assert {"weights/best.pt", "own/readme.txt"} <= set(tree.names)


def test_a_tree_far_too_large_is_not_read(mono):
    with (mono / "lq/holes.bin").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(PackageError) as error:
        pack([mono / "lq/e.yaml"], mono.parent / "a.zip", mono)
    assert "1000000.0 MB  holes.bin" in str(error.value)


def test_a_name_that_begins_with_a_dash_is_no_option():
    sweep = Sweep(("x",), (Path("-x.yaml"),), ("--limit", "1"))
    assert sweep.entrypoint(["-x.yaml", "a/-y.yaml"]) == "python -m lqray run ./-x.yaml a/-y.yaml --limit 1"


PRINTED = """
import json
from lqray.orchestration.provenance import CODE_LINE, code_changes, provenance, running_code
print(json.dumps([CODE_LINE.search(running_code())["code"], provenance(), code_changes()]))
"""


def test_what_was_sent_is_what_runs_and_what_is_recorded_of_it_is_the_senders(tmp_path):
    """The tree of this lqray in another repository, edited, unpacked as Ray does it."""
    mono = tmp_path / "mono"
    shutil.copytree(ROOT / "lqray", mono / "lq/lqray", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (mono / "lq/e.yaml").write_text("e")
    git(tmp_path, "init", "-q", str(mono))
    git(mono, "add", ".")
    git(mono, "commit", "-qm", "first")
    commit = subprocess.run(["git", "-C", mono, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    with (mono / "lq/lqray/ops/__init__.py").open("a") as file:
        file.write("# an idea\n")
    package = pack([mono / "lq/e.yaml"], tmp_path / "a.zip", mono / "lq")

    job = tmp_path / "working_dir_files/_ray_pkg_1"
    zipfile.ZipFile(package.path).extractall(job)
    assert (job / FILE).exists()
    by = Sender("ada", "laptop", "lqray submit e.yaml")
    environment = {**os.environ, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": by.as_metadata()})}
    done = subprocess.run([sys.executable, "-c", PRINTED], cwd=job, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    code, tags, changes = json.loads(done.stdout)
    assert code == package.submitted.code == tags["lqray.code"]
    assert code != digest_of(ROOT / "lqray", (ROOT / "lqray").rglob("*.py"))
    assert (tags["lqray.git_commit"], tags["lqray.git_dirty"]) == (commit, "true")
    assert "+# an idea" in changes
    assert tags["mlflow.user"] == "ada"
    assert tags["lqray.submitted_from"] == "laptop"
    assert tags["lqray.command"] == "lqray submit e.yaml"
