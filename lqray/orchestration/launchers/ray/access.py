"""Who may reach a Ray and what it learns: the token's file, the addresses it listens on, the environment's credentials.
What Ray 2.60 does by itself is in the comments; `SECURITY.md` says what cannot be had from it."""

from __future__ import annotations

import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_log = logging.getLogger(__name__)


def token_file() -> Path:
    """Where Ray looks for this user's token, unless RAY_AUTH_TOKEN holds it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def offer_token() -> None:
    """Show this user's Ray token, where there is one, to the cluster at RAY_ADDRESS, and let nobody else read it.

    `ray start` and `ray.init` ask for a token as soon as the user has one, but with an address `ray.init` shows it only
    when RAY_AUTH_MODE says so; a cluster that asks for none ignores it. Ray reads the setting when it is imported.
    """
    file = token_file()
    if "RAY_AUTH_TOKEN" in os.environ or file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    _close_to_others(file)


def provide_token() -> None:
    """Before a Ray of one's own starts: this user has a token, in a file that nobody else reads. Ray would make it
    with the mode that the umask leaves, 0644. Raises OSError where it cannot be kept."""
    file = token_file()
    if "RAY_AUTH_TOKEN" in os.environ or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    if not file.exists():
        _make(file)
    _close_to_others(file)


def _make(file: Path) -> None:
    """Whole or not at all: another launch may read it, or make it, at the same time."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    held, name = tempfile.mkstemp(prefix=".auth_token-", dir=file.parent)  # of mode 0600
    aside = Path(name)
    try:
        with os.fdopen(held, "w") as stream:
            stream.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def _close_to_others(file: Path) -> None:
    try:
        found = file.stat()
    except OSError:
        return
    if found.st_uid != os.getuid() or not found.st_mode & _OTHERS:
        return
    try:
        file.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
    except OSError as error:
        _log.warning("%s holds a Ray token and can be read by others: %s; chmod 600 it", file, error.strerror)
        return
    _log.warning(
        "%s holds a Ray token and could be read by others (mode %s); it is this user's alone now. If others use this "
        "machine, make a new token: remove the file where no Ray runs",
        file,
        stat.filemode(found.st_mode),
    )


@contextmanager
def loopback_only() -> Iterator[None]:
    """A Ray that is started within takes 127.0.0.1 for this machine's address, and listens there alone.

    `ray.init(_node_ip_address="127.0.0.1")` does not do it: Ray 2.60 puts the machine's outer address in its place, and
    then listens on all. It keeps to the loopback interface where clusters are switched off, as they are on Windows and
    macOS; the switch is read at Ray's import, and a launch before may have joined a cluster.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def withhold_credentials() -> None:
    """Ray Tune copies AWS_* of this environment into the runtime environment of each trial, which Ray logs, and its
    dashboard shows. Processes have credentials from their machine's environment instead."""
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    names.difference_update([name for name in names if name.startswith("AWS_")])
