"""How ssh logs in to a cluster's head: as whom, with which key and by which way, and whose host keys it trusts.

A head that the user's own ssh knows, or is told to treat in some way of its own, is checked as that ssh does. Of any
other, the key that it shows at first is kept in a file of lqray's, one for each cluster, and no other is accepted then.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lqray.experiment.user_cache import remembered
from lqray.orchestration.launchers.ray.cluster import ClusterError

_OFFENDING = re.compile(r"^Offending (?P<kind>\S+) key in (?P<file>.+):(?P<line>\d+)\s*$", re.MULTILINE)
_CHANGED = re.compile(r"^Host key for (?P<name>\S+) has changed", re.MULTILINE)
_SHOWN = re.compile(r"key sent by the remote host is\s+(?P<fingerprint>\S+?)\.?\s*$", re.MULTILINE)
_SECONDS = 10.0
_IDENTITY = ("type", "region", "project_id", "resource_group", "location")


@dataclass(frozen=True)
class Login:
    """destination: [user@]host. options: ssh's."""

    destination: str
    options: tuple[str, ...]

    @property
    def command(self) -> str:
        """To log in by hand, in the same way."""
        return shlex.join(["ssh", *self.options, self.destination])


def login(document: Mapping[str, Any], head: str) -> Login:
    """To the head, whose address is given, of a file of Ray's cluster launcher. Raises ClusterError where it asks for a
    way that is not known here, or no host keys can be kept."""
    auth = document.get("auth") or {}
    if auth.get("ssh_proxy_use_node_id"):
        raise ClusterError(
            "auth has ssh_proxy_use_node_id: true; allowed: a head that ssh reaches by its address. Make the tunnel "
            "with `ray dashboard FILE`, and submit to it: `--address http://127.0.0.1:8265`"
        )
    user, key, proxy = (auth.get(name) for name in ("ssh_user", "ssh_private_key", "ssh_proxy_command"))
    options = ["-i", str(Path(key).expanduser())] if key else []
    options += ["-o", f"ProxyCommand={proxy}"] if proxy else []
    destination = f"{user}@{head}" if user else head
    return Login(destination, (*options, *_host_keys(document, destination, options)))


def changed_key(said: str) -> str | None:
    """What ssh's refusal of a host key means and what to do; None where it did not refuse one that had changed."""
    offending, changed = _OFFENDING.search(said), _CHANGED.search(said)
    if not offending or not changed:
        return None
    shown = _SHOWN.search(said)
    found = f" ({shown['fingerprint']})" if shown else ""
    forget = shlex.join(["ssh-keygen", "-R", changed["name"], "-f", offending["file"]])
    return (
        f"the host key of {changed['name']} has changed: found one{found} that is not the {offending['kind']} key in "
        f"line {offending['line']} of {offending['file']}.\nEither another machine has this address now, as after "
        "a cluster that ended and began anew or a new installation, or somebody is between you and it, who would get "
        "what you send. On the machine, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` (or the file of another "
        f"kind) says which key it has. If that is the one shown, forget the old one and try again:\n  {forget}"
    )


def _host_keys(document: Mapping[str, Any], destination: str, options: Sequence[str]) -> list[str]:
    """ssh's options for host keys: none where the user's ssh has a way of its own, or knows the host."""
    settings = _settings(destination, options)
    users = [Path(file) for file in settings.get("userknownhostsfile", "").split() if Path(file).is_file()]
    if settings.get("stricthostkeychecking", "ask") != "ask" or any(_knows(file, settings) for file in users):
        return []
    kept = remembered(f"known_hosts/{_of_the_cluster(document)}")
    if kept is None:
        return []
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept.touch(mode=0o600)
        kept.chmod(0o600)
    except OSError as error:
        raise ClusterError(f"host keys cannot be kept: {error}. Set XDG_STATE_HOME to a folder of yours") from error
    files = " ".join(_quoted(file) for file in (kept, *users))  # ssh adds to the first
    return ["-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={files}"]


def _settings(destination: str, options: Sequence[str]) -> dict[str, str]:
    """What the user's ssh would do for that host, by the names of ssh_config in small letters."""
    said = _said(["ssh", "-G", *options, destination])
    return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)


def _knows(file: Path, settings: Mapping[str, str]) -> bool:
    name = settings.get("hostkeyalias") or settings.get("hostname", "")
    port = settings.get("port", "22")
    if port != "22" and "hostkeyalias" not in settings:
        name = f"[{name}]:{port}"
    return bool(name) and bool(_said(["ssh-keygen", "-F", name, "-f", str(file)]))


def _said(command: Sequence[str]) -> str:
    """What a program wrote to stdout; "" where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout


def _of_the_cluster(document: Mapping[str, Any]) -> str:
    """A file's name: clouds give the same addresses to machines of several clusters."""
    provider = document.get("provider") or {}
    name = str(document.get("cluster_name") or "default")
    identity = repr([name, *(provider.get(key) for key in _IDENTITY)])
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:60]}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _quoted(file: Path) -> str:
    """A file in a value of ssh's, which splits it at blanks and replaces what stands behind a %."""
    escaped = str(file).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
