"""What `lqray submit` says of a cluster that is not there, was started anew, or lacks what lqray needs."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.testing.heads import ROOT, free_port, ray_head
from tests.testing.jobs import (
    experiment,
    said,
    submit,
    submitting,
    wait_for,
)
from tests.testing.proxy import Proxy
from tests.testing.sweeps import marked


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
