"""`lqray submit` and the plain ways to run a sweep on a cluster, against a real Ray head with dashboard and token."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from lqray.orchestration.code_version import digest_of
from lqray.orchestration.provenance import CODE_LINE
from tests.testing.heads import TOKEN, ray_head, without
from tests.testing.jobs import (
    OF_CLIENT,
    OF_CLUSTER,
    ask,
    experiment,
    jobs,
    runs,
    said,
    start,
    store,
    submit,
    submitting,
    wait_for,
)
from tests.testing.proxy import Proxy
from tests.testing.sweeps import marked

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head whose environment says where runs are recorded, and has a secret."""
    folder = tmp_path_factory.mktemp("c")
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/lqray.db", "MLFLOW_TRACKING_PASSWORD": OF_CLUSTER}
    environment |= {"LQRAY_STORAGE": str(folder / "storage"), "LQRAY_TEST_MARK": str(folder)}
    with ray_head(folder, dashboard=True, cpus=4, **environment) as head:
        yield head


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
    assert re.match(r"(lqray|\S+ -m lqray) submit far\.yaml", run.data.tags["lqray.command"])
    kept = Path(run.info.artifact_uri.removeprefix("file://"))
    assert "+# an idea" in (kept / "git.diff").read_text()

    changed = path.with_name("-dash.yaml")
    changed.write_text(path.read_text().replace("edited", "dash", 1))
    submit(path.parent, f"./{changed.name}", *arguments[1:])
    assert [one.info.status for one in runs(cluster, "dash")] == ["FINISHED"]


NETS = """
from torch import nn
from HELPER import width


def build(options, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))
"""


@pytest.mark.ray
@pytest.mark.cluster
def test_parts_of_ones_own_travel_with_their_files_wherever_one_stands(cluster, tmp_path):
    """One experiment in a folder of the working tree, another outside of it; neither is the folder one stands in."""
    work = tmp_path / "work"
    work.mkdir()
    for name, folder in (("inside", work / "lab"), ("outside", tmp_path / "far")):
        path = experiment(folder, 5, name)
        path.write_text(path.read_text().replace("{name: mlp, layers: [16]}", f'{{name: "{name}_nets:build"}}'))
        (folder / f"{name}_nets.py").write_text(NETS.replace("HELPER", f"{name}_sizes"))
        (folder / f"{name}_sizes.py").write_text("width = 8\n")
    arguments = ["lab/far.yaml", "../far/far.yaml", "--launcher", "warm", "--address", cluster.dashboard]
    arguments += ["--set", f"storage.folder={cluster.log.parent}/storage", "--set", "resources.network_interface=lo"]
    submit(work, *arguments, "--dry-run")
    listed = said(work, "out.txt").splitlines()
    assert {"lab/inside_nets.py", "submitted/2/outside_nets.py", "submitted/2/outside_sizes.py"} <= set(listed)
    submit(work, *arguments)
    for name in ("inside", "outside"):
        (run,) = runs(cluster, name)
        assert run.info.status == "FINISHED"
        assert run.data.tags["lqray.parts"].startswith("2:")


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
from tests.testing.proxy import Proxy
if "-G" in sys.argv:  # what the user's ssh is told of that host
    sys.exit()
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
