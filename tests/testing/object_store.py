"""An S3 of the tests' own: moto's server in a process, so that the processes of a run share it."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def why_not() -> str | None:
    """What is missing, or None."""
    missing = [name for name in ("s3fs", "moto", "flask_cors") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def object_store(folder: Path, bucket: str = "bucket", host: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """An S3 with one empty bucket; yields the environment that clients need."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # of clients of another test's server, which is no more
    address = f"http://{host}:{free_port()}"
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", address.rpartition(":")[2]]
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=(folder / "moto.txt").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                request = urllib.request.Request(f"{address}/{bucket}", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "moto.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield environment
    finally:
        process.kill()
        process.wait()
