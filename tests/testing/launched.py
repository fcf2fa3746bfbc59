"""A Ray cluster that `ray up` started from the project's cluster.yaml: two hosts, and a third as somebody's laptop."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.testing.real_hosts import ROOT, Hosts, real_hosts

HEAD, WORKER, LAPTOP = 0, 1, 2
TREE = "/root/lqray"
"""The laptop's working tree, in which cluster.yaml has the addresses filled in."""


@dataclass(frozen=True)
class Launched:
    """shared: a folder that the three hosts share, as machines do over NFS. up: what `ray up` said."""

    hosts: Hosts
    shared: Path
    up: str

    @property
    def store(self) -> str:
        return f"sqlite:///{self.shared}/lqray.db"

    def wait_for_the_worker(self) -> None:
        """Until the autoscaler, which `ray up` leaves on the head, has set the other machine up."""
        deadline = time.monotonic() + 600
        while "2 local.cluster.node" not in (said := self.hosts.run(HEAD, ["bash", "-lc", "ray status"])):
            assert time.monotonic() < deadline, said
            time.sleep(1)

    def laptop(self, *command: str, **options) -> str:
        """What a command said that was run in the laptop's working tree. See `Hosts.run`."""
        return self.hosts.run(LAPTOP, command, folder=TREE, **{"timeout": 300, **options})

    def lqray(self, *arguments: str, **options) -> str:
        """What lqray said on the laptop."""
        return self.laptop(sys.executable, "-m", "lqray", *arguments, **options)


@contextlib.contextmanager
def launched(shared: Path) -> Iterator[Launched]:
    """The two machines have what requirements.lock asks for already, in the environment that LQRAY_VENV names: they
    have no network to install it from. `deploy/setup_node.sh` finds that out and builds lqray."""
    there = {"LQRAY_VENV": sys.prefix, "PYTHON": sys.executable, "RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
    with real_hosts(3, ssh=True, shared=[shared], environment=there) as hosts:
        home = hosts.root(LAPTOP)
        working_tree(home / Path(TREE).name, hosts)
        shutil.copy(hosts.key, home / ".ssh/id_ed25519")
        (home / ".lqray.env").write_text(
            f"MLFLOW_TRACKING_URI=sqlite:///{shared}/lqray.db\nLQRAY_STORAGE={shared}/storage\n"
        )
        (home / ".lqray.env").chmod(0o600)
        made = Launched(hosts, shared, "")
        made.laptop("sh", "-c", "(umask 077; ray get-auth-token --generate)")
        command = ["ray", "up", "-y", "cluster.yaml"]
        try:
            up = made.laptop(*command, timeout=900)
        except RuntimeError as error:  # Ray gives a node 30 s to start, which on a busy machine may not be enough
            if "timed out during startup" not in str(error):
                raise
            up = made.laptop(*command, timeout=900)
        made.wait_for_the_worker()
        yield Launched(hosts, shared, up)


def working_tree(tree: Path, hosts: Hosts) -> None:
    """A clone of this repository, with what is edited here, whose cluster.yaml names the hosts."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(tree)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, tree / name)
    text = (tree / "cluster.yaml").read_text()
    for old, new in (
        ("head_ip: 192.0.2.10\n", f"head_ip: {hosts.addresses[HEAD]}\n"),
        ("worker_ips: [192.0.2.11, 192.0.2.12]\n", f"worker_ips: [{hosts.addresses[WORKER]}]\n"),
        ("ssh_user: ubuntu\n", "ssh_user: root\n"),
        ("  # ssh_private_key: ~/.ssh/id_ed25519\n", "  ssh_private_key: ~/.ssh/id_ed25519\n"),
        ("min_workers: 2\nmax_workers: 2\n", "min_workers: 1\nmax_workers: 1\n"),
    ):
        assert text.count(old) == 1, f"cluster.yaml has no longer {old!r}"
        text = text.replace(old, new)
    yaml.safe_load(text)
    (tree / "cluster.yaml").write_text(text)
