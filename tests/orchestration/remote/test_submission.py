"""`lqray submit` and the plain ways to run a sweep on a cluster, against a real Ray head with dashboard and token."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner
from mlflow import MlflowClient

from lqray.cli import main
from lqray.experiment.schema import Storage, Tracking
from lqray.orchestration.code_version import digest_of
from lqray.orchestration.provenance import CODE_LINE
from lqray.orchestration.remote.job_checks import UnfitForJobsError, check_lasting
from lqray.orchestration.remote.package import pack
from lqray.orchestration.remote.working_tree import PackageError
from lqray.orchestration.submitted import FILE
from tests.testing.heads import TOKEN, free_port, ray_head, without
from tests.testing.sweeps import marked

ROOT = Path(__file__).resolve().parents[3]
TEXT = """
name: far
base:
  data: {name: digits}
  model: {name: mlp, layers: [16]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: ITERATIONS, batch_size: 16, evaluate_every: 500}
  workers: 1
  quantizer: {method: qsgd_inf, bucket_size: 128}
"""
OF_CLIENT, OF_CLUSTER = "secret-of-the-client", "secret-of-the-cluster"


# --- the working tree ---


@pytest.fixture
def tree(tmp_path):
    """A git repository with one commit."""
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / ".gitignore").write_text("ignored*\n__pycache__\n")
    for name in ("kept.py", "deleted.py", "sub/deep.py"):
        (folder / name).write_text(name)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (folder / "deleted.py").unlink()
    (folder / "new.yaml").write_text("new")
    (folder / "ignored.yaml").write_text("ignored, but named")
    (folder / "ignored.db").write_text("ignored")
    return folder


def test_the_tree_is_what_git_tracks_or_does_not_ignore_and_the_experiments(tree, tmp_path):
    outside = tmp_path / "outside.yaml"
    outside.write_text("outside")
    package = pack([Path("../new.yaml"), Path("../ignored.yaml"), outside], tmp_path / "a.zip", tree / "sub")
    assert package.experiments == ("new.yaml", "ignored.yaml", "submitted/3/outside.yaml")
    expected = {".gitignore", "kept.py", "sub/deep.py", FILE, *package.experiments}
    assert set(zipfile.ZipFile(package.path).namelist()) == expected
    assert package.files == len(expected)

    os.utime(tree / "kept.py", (1, 1))
    again = pack([Path("../new.yaml"), Path("../ignored.yaml"), outside], tmp_path / "b.zip", tree / "sub")
    assert again.path.read_bytes() == package.path.read_bytes()


def test_without_git_the_tree_is_what_ray_would_take(tree, tmp_path):
    shutil.rmtree(tree / ".git")
    (tree / ".venv").mkdir()
    (tree / ".venv/python").write_text("")
    (tree / "_native.abi3.so").write_text("of another machine")
    package = pack([tree / "new.yaml"], tmp_path / "a.zip", tree)
    assert set(zipfile.ZipFile(package.path).namelist()) == {".gitignore", "kept.py", "sub/deep.py", "new.yaml", FILE}


def test_a_tree_too_large_names_its_largest_files(tree, tmp_path):
    (tree / "weights.bin").write_bytes(os.urandom(20000))
    with pytest.raises(PackageError) as error:
        pack([tree / "new.yaml"], tmp_path / "a.zip", tree, limit=10000)
    assert "weights.bin" in str(error.value).splitlines()[1]
    assert ".gitignore" in str(error.value)
    assert not (tmp_path / "a.zip").exists()


# --- what would be lost ---


@pytest.mark.parametrize(
    ("tracking", "storage", "environment", "lost"),
    [
        ({}, {}, {}, ["tracking.uri", "storage.folder"]),
        ({"uri": "http://server"}, {"folder": "/shared"}, {}, []),
        ({"uri": "sqlite:////home/lqray.db"}, {"folder": "s3://bucket/x"}, {}, []),
        ({"uri": "sqlite:///lqray.db"}, {"folder": "here"}, {"MLFLOW_TRACKING_URI": "http://server"}, ["tracking.uri"]),
        ({}, {"folder": "/shared"}, {"MLFLOW_TRACKING_URI": "http://server"}, []),
        ({}, {}, {"MLFLOW_TRACKING_URI": "http://server", "LQRAY_STORAGE": "/shared"}, []),
    ],
)
def test_a_job_writes_nothing_where_ray_deletes_it(monkeypatch, tracking, storage, environment, lost):
    for name in ("MLFLOW_TRACKING_URI", "LQRAY_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sections = Tracking.model_validate(tracking), Storage.model_validate(storage)
    if not lost:
        check_lasting(*sections, here=True)
        return
    with pytest.raises(UnfitForJobsError) as error:
        check_lasting(*sections, here=True)
    for key in lost:
        assert key in str(error.value)
    said = {"uri": "tracking.uri", "folder": "storage.folder"}
    if not any(said[key] in lost for key in {**tracking, **storage}):
        check_lasting(*sections, here=False)  # what the cluster's environment says is not known here


@pytest.mark.parametrize("where", ["file", "option"])
def test_no_password_goes_into_a_job(tmp_path, where):
    uri = "postgresql://ada:hidden@server/mlflow"
    path = experiment(tmp_path, 5)
    if where == "file":
        path.write_text(path.read_text() + f"tracking: {{uri: '{uri}'}}\n")
    options = ["--set", f"tracking.uri={uri}"] if where == "option" else []
    refused = CliRunner().invoke(main, ["submit", str(path), *options])
    assert refused.exit_code == 2
    assert "MLFLOW_TRACKING_URI" in refused.stderr
    assert "hidden" not in refused.output


# --- what only reads ---


@pytest.mark.parametrize(
    "command",
    [
        *("status", "status far", "stop far", "ui far", "logs far", "failures far", "report far"),
        *("compare far other", "export far folder", "plot far --kind curves"),
    ],
)
def test_a_command_in_a_folder_without_a_store_makes_none(tmp_path, monkeypatch, command):
    """As on a laptop whose runs are recorded elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == 2, done.output
    assert "lqray.db" in done.output
    assert list(tmp_path.iterdir()) == []


# --- on a cluster ---


class Proxy:
    """A TCP proxy to a port, which can be cut and mended."""

    def __init__(self, target: int) -> None:
        self.port, self.target = free_port(), target
        self._open: list[socket.socket] = []
        self.mend()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=(one, other), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head whose environment says where runs are recorded, and has a secret."""
    folder = tmp_path_factory.mktemp("c")
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/lqray.db", "MLFLOW_TRACKING_PASSWORD": OF_CLUSTER}
    environment |= {"LQRAY_STORAGE": str(folder / "storage"), "LQRAY_TEST_MARK": str(folder)}
    with ray_head(folder, dashboard=True, cpus=4, **environment) as head:
        yield head


def store(cluster) -> str:
    return f"sqlite:///{cluster.log.parent}/lqray.db"


def start(folder: Path, *arguments: str, token: str | None = TOKEN, **environment: str) -> subprocess.Popen[str]:
    """A command in a folder of its own, which is no git repository; its output goes to files there."""
    clean = without("RAY_") | ({"RAY_AUTH_TOKEN": token} if token else {}) | {"HOME": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=clean | {"MLFLOW_TRACKING_PASSWORD": OF_CLIENT, "AWS_SECRET_ACCESS_KEY": OF_CLIENT} | environment,
        stdout=(folder / "out.txt").open("a"),
        stderr=(folder / "err.txt").open("a"),
        text=True,
        start_new_session=True,
    )


@contextmanager
def submitting(folder: Path, *arguments: str, **environment: str):
    process = start(folder, "lqray", "submit", *arguments, **environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def submit(folder: Path, *arguments: str, expected: int = 0, **environment: str) -> str:
    """Everything that the command has said."""
    before = len(said(folder))
    with submitting(folder, *arguments, **environment) as process:
        assert process.wait(400) == expected, said(folder)
    return said(folder)[before:]


def said(folder: Path, name: str = "err.txt") -> str:
    return (folder / name).read_text() if (folder / name).exists() else ""


def wait_for(ready, folder: Path, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, said(folder) + said(folder, "out.txt")
        time.sleep(0.1)


def experiment(folder: Path, iterations: int, name: str = "far") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "far.yaml"
    path.write_text(TEXT.replace("ITERATIONS", str(iterations)).replace("far", name, 1))
    return path


def ask(cluster, path: str, token: str | None = TOKEN) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(cluster.dashboard + path, headers=headers, timeout=30)


def jobs(cluster, name: str) -> dict[str, dict]:
    found = ask(cluster, "/api/jobs/").json()
    return {job["submission_id"]: job for job in found if (job["submission_id"] or "").startswith(f"{name}-")}


def runs(cluster, name: str) -> list:
    client = MlflowClient(store(cluster))
    return client.search_runs([client.get_experiment_by_name(name).experiment_id])


@pytest.mark.ray
@pytest.mark.cluster
def test_one_job_for_one_sweep_followed_through_a_lost_connection(cluster, tmp_path):
    path = experiment(tmp_path, 6000)
    folders = f"storage.folder={cluster.log.parent}/storage"
    proxy = Proxy(int(cluster.dashboard.rpartition(":")[2]))
    arguments = [path.name, "--launcher", "inline", "--set", folders]
    with submitting(tmp_path, *arguments, "--address", proxy.url) as first:
        wait_for(lambda: "started" in said(tmp_path, "out.txt"), tmp_path)
        (job_id,) = jobs(cluster, "far")
        assert f"{job_id} runs already" in submit(tmp_path, *arguments, "--address", cluster.dashboard, "--no-wait")
        assert list(jobs(cluster, "far")) == [job_id]
        proxy.cut()
        wait_for(lambda: "lost the connection" in said(tmp_path), tmp_path)
        proxy.mend()
        wait_for(lambda: "again" in said(tmp_path).partition("lost the connection")[2].partition("\n")[2], tmp_path)
        proxy.cut()
        wait_for(lambda: said(tmp_path).count("lost the connection") == 2, tmp_path, 30)
        proxy.mend()
        assert first.wait(400) == 0, said(tmp_path)
    log = ask(cluster, f"/api/jobs/{job_id}/logs").json()["logs"]
    assert "finished in" in log
    assert said(tmp_path, "out.txt") == log
    assert [run.info.status for run in runs(cluster, "far")] == ["FINISHED"]

    again = submit(tmp_path, *arguments, "--no-follow", "--address", cluster.dashboard)
    assert f"{job_id}-2: submitted" in again
    assert f"{job_id}-2: SUCCEEDED" in again
    assert "1 finished before" in ask(cluster, f"/api/jobs/{job_id}-2/logs").json()["logs"]
    assert len(runs(cluster, "far")) == 1

    told = ask(cluster, "/api/jobs/").text + log + said(tmp_path) + said(tmp_path, "out.txt")
    folder = cluster.log.parent
    written = [folder / "lqray.db", *(one for one in folder.glob("lqray-artifacts/**/*") if one.is_file())]
    assert len(written) > 2
    told += "".join(file.read_bytes().decode(errors="replace") for file in written)
    for secret in (OF_CLIENT, OF_CLUSTER, TOKEN):
        assert secret not in told


@pytest.mark.ray
@pytest.mark.cluster
def test_the_lqray_that_was_edited_here_runs_there_and_is_recorded_as_what_it_is(cluster, tmp_path):
    """lqray in a folder of a larger repository, edited; on the cluster is another one, with a commit of its own."""
    mono = tmp_path / "mono"
    shutil.copytree(ROOT / "lqray", mono / "lq/lqray", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    path = experiment(mono / "lq", 5, "edited")
    git = ["git", "-C", str(mono), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    with (mono / "lq/lqray/training/models/mlp.py").open("a") as file:
        file.write("# an idea\n")
    arguments = [path.name, "--launcher", "inline", "--set", f"storage.folder={cluster.log.parent}/storage"]
    arguments += ["--address", cluster.dashboard]
    told = submit(path.parent, *arguments)
    assert f"lqray is that of lq in {mono}, and nothing outside of it is sent" in told
    log = said(path.parent, "out.txt")
    code = digest_of(mono / "lq/lqray", (mono / "lq/lqray").rglob("*.py"))
    assert CODE_LINE.search(log)["code"] == code
    assert "working_dir_files" in CODE_LINE.search(log)["place"]
    assert f"lqray ui edited --uri {store(cluster)}" in log
    (run,) = runs(cluster, "edited")
    assert run.data.tags["lqray.code"] == code
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert (run.data.tags["lqray.git_commit"], run.data.tags["lqray.git_dirty"]) == (head, "true")
    assert run.data.tags["lqray.command"].startswith("__main__.py submit far.yaml")
    kept = Path(run.info.artifact_uri.removeprefix("file://"))
    assert "+# an idea" in (kept / "git.diff").read_text()

    changed = path.with_name("-dash.yaml")
    changed.write_text(path.read_text().replace("edited", "dash", 1))
    submit(path.parent, f"./{changed.name}", *arguments[1:])
    assert [one.info.status for one in runs(cluster, "dash")] == ["FINISHED"]


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.slow
def test_ctrl_c_leaves_the_job_and_ray_job_stop_ends_it_recorded(cluster, tmp_path):
    path = experiment(tmp_path, 10**6, "long")
    arguments = [path.name, "--launcher", "inline", "--set", f"storage.folder={cluster.log.parent}/storage"]
    arguments += ["--address", cluster.dashboard]
    with submitting(tmp_path, *arguments) as process:
        wait_for(lambda: "started" in said(tmp_path, "out.txt"), tmp_path)
        (job_id,) = jobs(cluster, "long")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert jobs(cluster, "long")[job_id]["status"] == "RUNNING"
    assert f"lqray submit {path.name}" in said(tmp_path)
    assert f"RAY_AUTH_MODE=token ray job stop --address {cluster.dashboard} {job_id}" in said(tmp_path)
    with submitting(tmp_path, *arguments, "--no-follow") as process:
        wait_for(lambda: "runs already" in said(tmp_path), tmp_path)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        requests.post(f"{cluster.dashboard}/api/jobs/{job_id}/stop", headers=headers, timeout=60).raise_for_status()
        assert process.wait(90) == 1
    assert f"{job_id}: STOPPED" in said(tmp_path)
    assert [run.info.status for run in runs(cluster, "long")] == ["KILLED"]


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.parametrize("token", [None, "0" * 64])
def test_without_the_token_nothing_answers(cluster, tmp_path, token):
    path = experiment(tmp_path, 5)
    refused = submit(
        tmp_path, path.name, "--address", cluster.dashboard, "--set", "storage.folder=/x", expected=2, token=token
    )
    assert "RAY_AUTH_TOKEN" in refused
    assert "Traceback" not in refused
    for page in ("/api/jobs/", "/nodes?view=summary", "/api/cluster_status"):
        assert ask(cluster, page, token).status_code == (403 if token else 401), page
        assert ask(cluster, page).status_code == 200
    environment = without("RAY_") | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {})
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", cluster.address],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()


def _port(head) -> int:
    return int(head.dashboard.rpartition(":")[2])


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.slow
def test_a_head_that_was_started_anew_is_said_and_what_is_submitted_again_continues(tmp_path, tmp_path_factory):
    """Its job server forgets; what was recorded, and the checkpoints, are kept."""
    path = experiment(tmp_path / "laptop", 4000)
    kept = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/lqray.db", "LQRAY_STORAGE": str(tmp_path / "storage")}
    arguments = [path.name, "--launcher", "inline", "--set", "storage.checkpoint_every=500"]
    one, two = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")  # Ray's sockets do not allow for long names
    with ray_head(one, dashboard=True, **kept) as head:
        proxy = Proxy(_port(head))
        arguments += ["--address", proxy.url]
        with submitting(path.parent, *arguments) as process:
            wait_for(lambda: list(tmp_path.glob("storage/**/step-*.pt")), path.parent)
            proxy.cut()
            for number in marked(one):  # as the machine's restart would
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            with ray_head(two, dashboard=True, **kept) as anew:
                proxy.target = _port(anew)
                proxy.mend()
                assert process.wait(120) == 2, said(path.parent)
                assert "the cluster was started anew" in said(path.parent)
                submit(path.parent, *arguments)
    assert "1 to continue" in said(path.parent, "out.txt")
    client = MlflowClient(kept["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name("far").experiment_id])
    assert run.info.status == "FINISHED"


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.slow
def test_a_cluster_without_what_lqray_needs_says_what_and_how_to_install_it(tmp_path, tmp_path_factory):
    """Its Python is this one, with everything that is installed here but MLflow."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    (packages,) = bare.glob("lib/python*/site-packages")
    for one in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not one.name.startswith(("mlflow", "__editable__", "lqray")):
            (packages / one.name).symlink_to(one)
    path = experiment(tmp_path / "laptop", 5)
    shutil.copytree(ROOT / "lqray", path.parent / "lqray", ignore=shutil.ignore_patterns("__pycache__"))
    there = {"PATH": f"{bare}/bin:{os.environ['PATH']}", "PYTHONPATH": ""}
    with ray_head(tmp_path_factory.mktemp("c"), dashboard=True, **there) as head:
        arguments = [path.name, "--set", f"storage.folder={tmp_path}", "--set", "tracking.uri=http://server"]
        told = submit(path.parent, *arguments, "--address", head.dashboard, expected=1)
    assert "The cluster's Python has no mlflow." in told
    assert "ray up" in told


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.slow
def test_ray_job_submit_runs_the_quickstart_as_it_is(cluster, tmp_path):
    command = ["ray.scripts.scripts", "job", "submit", "--address", cluster.dashboard, "--working-dir", str(ROOT)]
    command += ["--", "python", "-m", "lqray", "run", "experiments/quickstart.yaml", "--limit", "1"]
    command += ["--set", "schedule.iterations=20", "--set", f"storage.folder={cluster.log.parent}/storage"]
    command += ["--set", "resources.network_interface=lo"]
    process = start(tmp_path, *command, RAY_AUTH_MODE="token")
    interfaces, deadline = set(), time.monotonic() + 300
    while process.poll() is None:
        assert time.monotonic() < deadline, said(tmp_path, "out.txt") + said(tmp_path)
        for number in marked(cluster.log.parent, "TrainWorker"):
            with suppress(OSError):  # it may have ended
                interfaces |= set(Path(f"/proc/{number}/environ").read_text().split("\0"))
        time.sleep(0.2)
    assert process.returncode == 0, said(tmp_path, "out.txt") + said(tmp_path)
    (run,) = runs(cluster, "quickstart")
    assert run.info.status == "FINISHED"
    # From their start: Ray Train makes the process group before any code of lqray runs in them.
    assert {"GLOO_SOCKET_IFNAME=lo", "NCCL_SOCKET_IFNAME=lo"} <= interfaces


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.slow
def test_a_job_that_would_lose_its_runs_fails_and_says_so(cluster, tmp_path):
    path = experiment(tmp_path, 5, "lost")
    submit(tmp_path, path.name, "--set", "tracking.uri=sqlite:///here.db", "--address", cluster.dashboard, expected=2)
    assert "a Ray job runs in a folder that Ray deletes" in said(tmp_path)
    assert jobs(cluster, "lost") == {}


SSH = """#!{python}
import json, sys, threading, time
sys.path.insert(0, {root!r})
from tests.orchestration.remote.test_submission import Proxy, _copy
json.dump(sys.argv, open({log!r}, "a")); open({log!r}, "a").write("\\n")
near, far = sys.argv[sys.argv.index("-L") + 1].split(":")[1::2]
class Forward(Proxy):
    def __init__(self):
        self.port, self.target, self._open = int(near), int(far), []
        self.mend()
Forward()
time.sleep(600)
"""


@pytest.mark.ray
@pytest.mark.cluster
def test_a_cluster_yaml_is_reached_through_ssh(cluster, tmp_path):
    program = tmp_path / "bin/ssh"
    program.parent.mkdir()
    log = tmp_path / "ssh.jsonl"
    program.write_text(SSH.format(python=sys.executable, root=str(ROOT), log=str(log)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    port = cluster.dashboard.rpartition(":")[2]
    config = tmp_path / "cluster.yaml"
    config.write_text(
        "provider: {type: local, head_ip: 192.0.2.10}\nauth: {ssh_user: ubuntu, ssh_private_key: ~/.ssh/key}\n"
        f"head_start_ray_commands: ['ray start --head --dashboard-port={port}']\n"
    )
    path = experiment(tmp_path, 5, "tunnel")
    arguments = [path.name, "--launcher", "inline", "--set", f"storage.folder={cluster.log.parent}/storage"]
    there = f"{program.parent}:{os.environ['PATH']}"
    assert "SUCCEEDED" in submit(tmp_path, *arguments, "--cluster", config.name, PATH=there)
    (call,) = log.read_text().splitlines()
    assert "ubuntu@192.0.2.10" in call
    assert f"{tmp_path}/.ssh/key" in call
    assert [run.info.status for run in runs(cluster, "tunnel")] == ["FINISHED"]


def test_a_tunnel_that_fails_says_what_ssh_said(tmp_path):
    program = tmp_path / "bin/ssh"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Permission denied (publickey)' >&2; exit 255\n")
    program.chmod(0o755)
    (tmp_path / "cluster.yaml").write_text("provider: {type: local, head_ip: 192.0.2.10}\n")
    path = experiment(tmp_path, 5)
    arguments = [path.name, "--set", "storage.folder=/x", "--cluster", "cluster.yaml"]
    refused = submit(tmp_path, *arguments, expected=2, PATH=f"{program.parent}:{os.environ['PATH']}")
    assert "Permission denied" in refused
    assert "ray up cluster.yaml" in refused


def test_no_cluster_at_the_address(tmp_path):
    path = experiment(tmp_path, 5)
    refused = submit(
        tmp_path, path.name, "--set", "storage.folder=/x", "--address", f"127.0.0.1:{free_port()}", expected=2
    )
    assert "no job server answers" in refused
    assert "Traceback" not in refused


def test_the_script_for_ray_submit_needs_nothing_beside_it(tmp_path):
    """As Ray runs it on a head: one file, copied to the home directory."""
    script = shutil.copy(ROOT / "lqray/submit.py", tmp_path)
    environment = without("RAY_", "PYTHONPATH") | {"PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, script, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = run("experiments/quickstart.yaml", "--help")
    assert done.returncode == 0, done.stderr
    assert "Run the trials of each FILE" in done.stdout
    missing = run("experiments/nothing.yaml")
    assert missing.returncode == 1
    assert "ray rsync-up" in missing.stderr
