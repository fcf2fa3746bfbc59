"""Whom the tunnel to a cluster's head trusts: real ssh, and a real sshd on this machine."""

import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lqray.orchestration.launchers.ray.cluster import ClusterError
from lqray.orchestration.remote.login import changed_key, login
from lqray.orchestration.remote.tunnel import Tunnel
from tests.testing.sshd import sshd, why_not

needs_sshd = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An sshd, which the user's ssh does not know; lqray's state is in a folder whose name ssh would split."""
    folder = tmp_path / "sshd"
    folder.mkdir()
    with sshd(folder) as made:
        monkeypatch.setenv("PATH", str(made.ssh()), prepend=":")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "st ate%h"))
        yield made


def reach(server, tmp_path: Path, **auth: str) -> None:
    """Make a tunnel to the head of a cluster.yaml, and close it."""
    document = {
        "cluster_name": "one",
        "provider": {"type": "local", "head_ip": "127.0.0.1"},
        "auth": {"ssh_user": server.user, "ssh_private_key": str(server.key), **auth},
    }
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(document))
    tunnel = Tunnel(tmp_path / "cluster.yaml")
    try:
        tunnel.address()
    finally:
        tunnel.close()


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "st ate%h").glob("lqray/known_hosts/*"))


@needs_sshd
def test_the_first_key_of_a_head_is_kept_and_another_one_refused_until_it_is_forgotten(server, tmp_path):
    reach(server, tmp_path)
    (file,) = kept(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_text().splitlines()) == 1
    assert not (server.folder / "known_hosts").exists()
    reach(server, tmp_path)
    server.start()
    with pytest.raises(ClusterError) as refused:
        reach(server, tmp_path)
    told = str(refused.value)
    assert f"the host key of [127.0.0.1]:{server.port} has changed" in told
    assert f"line 1 of {file}" in told
    shown = subprocess.run(["ssh-keygen", "-lf", server.folder / "host_key.pub"], capture_output=True, text=True).stdout
    assert shown.split()[1] in told
    assert "a cluster that ended and began anew" in told
    assert "somebody is between you and it" in told
    subprocess.run(shlex.split(told.splitlines()[-1]), check=True, capture_output=True)
    reach(server, tmp_path)


@needs_sshd
def test_a_head_that_the_user_knows_is_checked_as_his_ssh_does(server, tmp_path):
    known = server.folder / "known_hosts"
    name, key = f"[127.0.0.1]:{server.port}", (server.folder / "host_key.pub").read_text()
    known.write_text(f"{name} {key}")
    reach(server, tmp_path)
    server.start()
    with pytest.raises(ClusterError, match=f"line 1 of {re.escape(str(known))}"):
        reach(server, tmp_path)
    assert kept(tmp_path) == []


@needs_sshd
def test_a_head_that_the_user_came_to_know_later_is_checked_against_that(server, tmp_path):
    """And not against what lqray kept before."""
    reach(server, tmp_path)
    old = (server.folder / "host_key.pub").read_text()
    server.start()
    (file,) = kept(tmp_path)
    name = f"[127.0.0.1]:{server.port}"
    file.write_text(f"{name} {(server.folder / 'host_key.pub').read_text()}")
    (server.folder / "known_hosts").write_text(f"{name} {old}")
    with pytest.raises(ClusterError, match="has changed"):
        reach(server, tmp_path)


@needs_sshd
def test_a_user_who_wants_to_know_all_hosts_is_heard_and_the_command_to_log_in_is_whole(server, tmp_path):
    server.ssh("StrictHostKeyChecking yes")
    with pytest.raises(ClusterError, match="Host key verification failed") as refused:
        reach(server, tmp_path)
    assert kept(tmp_path) == []
    assert f"`ssh -i {server.key} {server.user}@127.0.0.1`" in str(refused.value)


@needs_sshd
def test_the_command_to_log_in_by_hand_has_the_tunnels_options(server, tmp_path):
    """A key that does not let anybody in: with the right one in its place, the command works."""
    wrong = tmp_path / "wrong key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", wrong], check=True)
    with pytest.raises(ClusterError, match="Permission denied") as refused:
        reach(server, tmp_path, ssh_private_key=str(wrong))
    command = re.search(r"can you log in \(`(.*)`\)", str(refused.value))[1]
    wrong.write_bytes(server.key.read_bytes())
    wrong.with_suffix(".pub").unlink()
    done = subprocess.run([*shlex.split(command), "echo", "in"], capture_output=True, text=True)
    assert done.stdout == "in\n", done.stderr


PROXY = """
import os, socket, sys, threading
there = socket.create_connection((sys.argv[1], int(sys.argv[2])))
open(sys.argv[3], "w").write(sys.argv[1])
def forward():
    while data := os.read(0, 65536):
        there.sendall(data)
    os._exit(0)
threading.Thread(target=forward, daemon=True).start()
while data := there.recv(65536):
    os.write(1, data)
"""


@needs_sshd
def test_the_way_goes_through_the_files_proxy(server, tmp_path):
    (tmp_path / "proxy.py").write_text(PROXY)
    reach(server, tmp_path, ssh_proxy_command=f"{sys.executable} {tmp_path}/proxy.py %h %p {tmp_path}/passed")
    assert (tmp_path / "passed").read_text() == "127.0.0.1"


def test_clusters_keep_their_host_keys_apart(tmp_path, monkeypatch):
    """Two clouds give the same addresses; the same cluster is the same one with more machines, or another size."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one = {"cluster_name": "a/b", "provider": {"type": "aws", "region": "eu-west-1"}}
    others = [
        one | {"cluster_name": "c"},
        one | {"provider": one["provider"] | {"region": "us-east-1"}},
        one | {"provider": {"type": "gcp", "region": "eu-west-1"}},
    ]
    files = [login(document, "192.0.2.1").options for document in (one, *others)]
    assert len(set(files)) == 4
    assert login(one | {"max_workers": 7}, "192.0.2.1").options == files[0]
    names = sorted(file.name for file in (tmp_path / "lqray/known_hosts").iterdir())
    assert len(names) == 4
    assert all(re.fullmatch(r"(a-b|c)-[0-9a-f]{8}", name) for name in names)


def test_what_cannot_be_done_is_said(tmp_path, monkeypatch):
    document = {"auth": {"ssh_proxy_command": "aws ssm", "ssh_proxy_use_node_id": True}}
    with pytest.raises(ClusterError, match="ray dashboard"):
        login(document, "i-0123")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(ClusterError, match="XDG_STATE_HOME"):
        login({}, "192.0.2.1")


def test_other_refusals_are_no_changed_key():
    assert changed_key("Permission denied (publickey).") is None
    assert changed_key("No ED25519 host key is known for 192.0.2.1 and you have requested strict checking.") is None
