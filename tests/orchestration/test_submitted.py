"""What a job does with what its sender told it, and what is refused before anything is sent."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

import lqray
from lqray.cli import main
from lqray.experiment.requirements import NEEDED
from lqray.orchestration.code_version import code_version
from lqray.orchestration.provenance import CODE_LINE, provenance, running_code
from lqray.orchestration.submitted import FILE, Sender, Submitted, sender, submitted

TEXT = """
name: sent
base:
  data: {name: gaussian_mixture}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 5, batch_size: 16}
  workers: 1
  quantizer: {method: qsgd_inf, bits: 3, bucket_size: 64}
sweep:
  - matrix: {seed: [1, 2]}
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The folder of a job, as the current one."""
    folder = tmp_path / "working_dir_files/_ray_pkg_1"
    folder.mkdir(parents=True)
    (folder / "sent.yaml").write_text(TEXT)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/lqray.db")
    monkeypatch.setenv("LQRAY_STORAGE", str(tmp_path / "storage"))
    for known in (submitted, sender):
        known.cache_clear()
    yield folder
    for known in (submitted, sender):
        known.cache_clear()


def run(*arguments):
    return CliRunner().invoke(main, ["run", "sent.yaml", "--launcher", "inline", *arguments])


def test_other_code_than_was_sent_does_not_run(job):
    (job / FILE).write_text(Submitted(code="0" * 12).as_json())
    done = run()
    assert done.exit_code == 2
    assert done.stdout.splitlines() == [running_code()]
    assert f"was sent with lqray's code {'0' * 12}, and what runs is {code_version()}" in done.stderr
    assert not (job.parents[1] / "lqray.db").exists()


def test_a_job_says_first_which_lqray_it_is_and_its_commands_are_for_the_laptop(job, monkeypatch):
    (job / FILE).write_text(Submitted(code=code_version()).as_json())
    by = {"metadata": Sender("ada", "laptop", "lqray submit sent.yaml").as_metadata()}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(by))
    done = run("--limit", "1")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == running_code()
    store = f"sqlite:///{job.parents[1]}/lqray.db"
    assert f"lqray ui sent --uri {store}" in done.stdout
    assert provenance()["mlflow.user"] == "ada"
    assert provenance()["lqray.command"] == "lqray submit sent.yaml"


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10**5, json.dumps({"code": 3, "user": ["x"], "new": "y"})])
def test_a_damaged_note_is_passed_over(job, text):
    (job / FILE).write_text(text)
    assert submitted() in (None, Submitted())


def test_elsewhere_a_note_says_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FILE).write_text(Submitted(code="0" * 12).as_json())
    submitted.cache_clear()
    assert submitted() is None


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (("bits: 3", "bits: 99"), [], "bits"),
        (("seed: [1, 2]", "seed: [1, x]"), [], "seed"),
        ((), ["--only", "nosuch"], "--only nosuch: found no trial of such a name"),
        ((), ["--stop-on", "acuracy"], "acuracy"),
        ((), ["--set", "quantizer.bits=99"], "bits"),
        (("batch_size: 16", "batch_size: 100000000"), [], "batch"),
    ],
)
@pytest.mark.parametrize("command", ["submit", "run"])
def test_what_cannot_run_is_refused_here(tmp_path, monkeypatch, command, change, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sent.yaml").write_text(TEXT.replace(*change) if change else TEXT)
    where = ["--address", "http://127.0.0.1:1", "--set", "storage.folder=/x"] if command == "submit" else []
    done = CliRunner().invoke(main, [command, "sent.yaml", *where, *options])
    assert done.exit_code == 2
    assert said in done.stderr
    assert "127.0.0.1:1" not in done.stderr
    assert "Traceback" not in done.stderr


WITHOUT = """
import importlib.metadata, sys
known = importlib.metadata.distribution
def distribution(name):
    if name == "lqray":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
importlib.metadata.distribution = distribution
sys.modules["psutil" if sys.argv[1] == "a package" else "ignored"] = None
sys.argv = ["lqray", "run", "sent.yaml", "--launcher", "inline", "--limit", "1"]
from lqray.cli import main
main()
"""


@pytest.mark.parametrize("lacks", ["lqray", "a package"])
def test_code_that_was_only_sent_runs_where_all_else_is_installed(job, lacks):
    done = subprocess.run([sys.executable, "-c", WITHOUT, lacks], cwd=job, capture_output=True, text=True)
    assert CODE_LINE.search(done.stdout)["code"] == code_version()
    assert done.stdout.startswith("lqray (not installed), code")
    if lacks == "lqray":
        assert done.returncode == 0, done.stderr
        assert "finished in" in done.stdout
    else:
        assert done.returncode == 2
        assert done.stderr.startswith(f"Error: lqray needs psutil, which {sys.executable} does not have")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metadata": []}', '{"metadata": {"lqray.sent_by.user": 3}}'])
def test_other_metadata_says_nothing_of_a_sender(job, monkeypatch, text):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", text)
    assert sender() == Sender()


def test_what_is_needed_is_what_is_declared():
    root = Path(lqray.__file__).parents[1]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {Requirement(one).name for one in declared}
    modules = {"pyyaml": "yaml", "scikit-learn": "sklearn", "pillow": "PIL"}
    assert {modules.get(name, name) for name in names} == NEEDED


def test_a_python_too_old_is_said_before_anything_is_imported(tmp_path):
    script = (Path(lqray.__file__).parent / "__main__.py").read_text()
    assert script.index("sys.version_info < (3, 11)") < script.index("from lqray.cli")
    code = f"import sys; sys.version_info = (3, 9, 1); exec({script!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: lqray needs Python 3.11 or newer")
