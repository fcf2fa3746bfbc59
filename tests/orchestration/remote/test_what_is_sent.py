"""What `lqray submit` sends, and what it leaves where it is: whoever has the cluster's token reads a job's files."""

import subprocess
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.experiment.secrets import is_secret_file
from lqray.orchestration.remote.package import pack
from lqray.orchestration.remote.working_tree import PackageError
from lqray.orchestration.submitted import FILE

ROOT = Path(__file__).resolve().parents[3]
TEXT = """
name: sent
base:
  data: {name: digits}
  model: {name: mlp, layers: [16]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 5, batch_size: 16}
  workers: 1
  quantizer: {method: qsgd_inf, bucket_size: 128}
tracking: {uri: "http://server:5000"}
storage: {folder: /shared}
"""


@pytest.fixture(params=[True, False], ids=["git", "no git"])
def tree(request, tmp_path):
    folder = tmp_path / "tree"
    (folder / "deploy").mkdir(parents=True)
    (folder / "e.yaml").write_text(TEXT)
    (folder / "kept.py").write_text("")
    if request.param:
        subprocess.run(["git", "-C", folder, "init", "-q"], check=True)
    return folder


def names(tree: Path) -> set[str]:
    package = pack([tree / "e.yaml"], tree.parent / "tree.zip", tree)
    found = set(zipfile.ZipFile(package.path).namelist())
    assert found == set(package.names)
    assert found.isdisjoint(package.tree.secrets)
    return found - {FILE}


def test_files_of_secrets_stay_here(tree):
    secret = [".env", "deploy/.env", "deploy/.env.production", "mlflow.env", ".netrc", "id_ed25519", "Lqray.PEM"]
    secret += ["secrets.yaml", "credentials.json", ".pgpass", "tls.key", ".lqray.env"]
    for name in secret:
        (tree / name).write_text("hidden")
    (tree / ".aws").mkdir()
    (tree / ".aws/config").write_text("hidden")
    (tree / ".env.example").write_text("PASSWORD=...")
    (tree / "secrets.py").write_text("")
    assert names(tree) == {"e.yaml", "kept.py", ".env.example", "secrets.py"}
    package = pack([tree / "e.yaml"], tree.parent / "tree.zip", tree)
    assert set(package.tree.secrets) == {*secret, ".aws/config"}


def test_a_link_to_a_secret_stays_here_and_one_within_the_tree_goes(tree):
    (tree / ".env").write_text("hidden")
    (tree / "settings.txt").symlink_to(".env")
    (tree / "also.py").symlink_to("kept.py")
    assert names(tree) == {"e.yaml", "kept.py", "also.py"}


@pytest.mark.parametrize("target", ["../outside.txt", "/etc/hostname"])
def test_a_link_out_of_the_tree_is_refused_by_its_name(tree, target):
    (tree.parent / "outside.txt").write_text("hidden")
    (tree / "deploy/link.txt").symlink_to(Path(target) if target.startswith("/") else Path("..") / target)
    with pytest.raises(PackageError) as error:
        names(tree)
    assert "deploy/link.txt" in str(error.value)
    assert ".gitignore" in str(error.value)


def test_a_folder_that_became_a_link_out_of_the_tree_is_refused(tmp_path):
    tree = tmp_path / "tree"
    (tree / "data").mkdir(parents=True)
    (tree / "e.yaml").write_text(TEXT)
    (tree / "data/a.txt").write_text("a")
    subprocess.run(["git", "-C", tree, "init", "-q"], check=True)
    subprocess.run(["git", "-C", tree, "add", "."], check=True)
    (tree / "data").rename(tmp_path / "moved")
    (tree / "data").symlink_to(tmp_path / "moved")
    with pytest.raises(PackageError, match=r"data/a\.txt"):
        names(tree)


def test_a_dry_run_shows_what_would_be_sent_and_asks_no_cluster(tree, monkeypatch):
    (tree / ".env").write_text("hidden")
    monkeypatch.chdir(tree)
    arguments = ["submit", "e.yaml", "--address", "http://127.0.0.1:1", "--dry-run", "--only", "qsgd*"]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == ["e.yaml", "kept.py", FILE]
    assert "python -m lqray run e.yaml --only 'qsgd*'" in shown.stderr
    assert "3 files" in shown.stderr
    assert "holds no lqray: the cluster's own runs" in shown.stderr
    assert "left out, 1, since by their names they hold secrets: .env" in shown.stderr


def test_nothing_of_lqrays_own_tree_counts_as_a_secret():
    known = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True).stdout.splitlines()
    assert [name for name in known if is_secret_file(name)] == []


def test_images_leave_secrets_here_too_and_nothing_else():
    """`ray up`: tests/orchestration/test_cluster_files.py."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    known = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True).stdout.splitlines()
    for pattern in (one.removeprefix("**/") for one in ignored if one.startswith("**/")):
        assert [name for name in known if any(fnmatch(part, pattern) for part in Path(name).parts)] == []
    for name in (".env", "*.env", ".netrc", "*.pem", "*.key"):
        assert f"**/{name}" in ignored
    listed = ["git", "-C", ROOT, "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(listed, capture_output=True, text=True, check=True).stdout == ""  # nor does `ray up`
