"""An actor that looks around on one node of a cluster, for `lqray.orchestration.doctor.cluster`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.options.data import DataOptions
from lqray.experiment.secrets import masked
from lqray.orchestration.code_version import code_version
from lqray.orchestration.doctor.local import LEAST_FREE_BYTES, Finding, operator_findings
from lqray.training.data_check import look_at_data
from lqray.training.files import CorruptDataError, MissingDataError
from lqray.training.storage import check_folder, open_folder

PACKAGES = ("torch", "torchvision", "ray", "mlflow", "numpy", "scipy")
_PINGS = 20
_SEND_SECONDS, _MOST_BYTES, _CHUNK = 1.0, 256 << 20, 1 << 16
_CONNECT_SECONDS = 5.0


def package_versions() -> dict[str, str]:
    """Of Python and the packages that a result depends on; "missing" for one that is not here."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


@dataclass(frozen=True)
class Wanted:
    """What a node should have: the client's code and versions, the sweep's storage, MLflow store and datasets."""

    code: str
    versions: Mapping[str, str]
    storage: str
    store: str
    datasets: tuple[DataOptions, ...]


class Probe:
    """One of a node. Its methods may be called at the same time."""

    def examine(self, wanted: Wanted) -> list[Finding]:
        """What can be seen from here alone."""
        return [
            _code(wanted.code),
            _packages(wanted.versions),
            *(_renamed(finding) for finding in operator_findings()),
            _gpus(),
            *map(_dataset, wanted.datasets),
            *_disks(wanted.storage),
            _reachable(wanted.store),
        ]

    def leave_mark(self, storage: str, who: str) -> str:
        """Write a file into the storage folder; its name. Raises StorageError."""
        folder = open_folder(storage)
        check_folder(folder)
        name = f"lqray-doctor-{who}"
        folder.write(name, who.encode())
        return name

    def missing_marks(self, storage: str, names: list[str]) -> list[str]:
        """Of the files that all nodes wrote, those that are not here."""
        return sorted(set(names) - set(open_folder(storage).names("lqray-doctor-*")))

    def remove_mark(self, storage: str, name: str) -> None:
        """Remove what `leave_mark` wrote."""
        open_folder(storage).remove(name)

    def clock(self) -> float:
        """Seconds since the epoch, as this node has them."""
        return time.time()

    def listen(self, address: str) -> int:
        """Take one connection at a port of this address, which is returned, and answer `send` there."""
        server = socket.create_server((address, 0))
        server.settimeout(4 * _CONNECT_SECONDS)
        threading.Thread(target=_receive, args=(server,), daemon=True).start()
        port: int = server.getsockname()[1]
        return port

    def send(self, address: str, port: int) -> tuple[float, float]:
        """(Mbit/s that arrive, milliseconds there and back) of the way to a node that listens."""
        with socket.create_connection((address, port), timeout=_CONNECT_SECONDS) as link:
            link.settimeout(30.0)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            trips = []
            for _ in range(_PINGS):
                started = time.perf_counter()
                link.sendall(b"?")
                _exactly(link, 1)
                trips.append(time.perf_counter() - started)
            chunk, sent, deadline = bytes(_CHUNK), 0, time.monotonic() + _SEND_SECONDS
            while sent < _MOST_BYTES and time.monotonic() < deadline:
                link.sendall(chunk)
                sent += _CHUNK
            link.shutdown(socket.SHUT_WR)
            received, seconds = struct.unpack("<qd", _exactly(link, 16))
            return 8e-6 * received / max(seconds, 1e-9), 1e3 * statistics.median(trips)


def _receive(server: socket.socket) -> None:
    with server:
        link, _ = server.accept()
    with link:
        link.settimeout(30.0)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(_PINGS):
            link.sendall(_exactly(link, 1))
        count, started = 0, 0.0
        while part := link.recv(_CHUNK):
            if not started:
                started = time.perf_counter()  # the first part is the clock's start, and not counted
            else:
                count += len(part)
        link.sendall(struct.pack("<qd", count, time.perf_counter() - started))


def _exactly(link: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        part = link.recv(count - len(content))
        if not part:
            raise ConnectionError("the other end hung up")
        content += part
    return content


def _code(wanted: str) -> Finding:
    here = code_version()
    if here == wanted:
        return Finding("lqray", "ok", f"code {here}, as here")
    remedy = "install the same lqray on all nodes, or let `lqray submit FILE` carry it there"
    return Finding("lqray", "broken", f"code {here}, the launch's is {wanted}", remedy)


def _packages(wanted: Mapping[str, str]) -> Finding:
    here = package_versions()
    other = [f"{name} {here[name]} instead of {version}" for name, version in wanted.items() if here[name] != version]
    if other:
        return Finding("packages", "broken", ", ".join(other), "install the same requirements.lock on all nodes")
    return Finding("packages", "ok", ", ".join(f"{name} {version}" for name, version in here.items()))


def _renamed(finding: Finding) -> Finding:
    return Finding("operators", finding.state, f"{finding.what}: {finding.found}", finding.remedy)


def _gpus() -> Finding:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("GPU", "ok", ", ".join(names) or f"none; {cores} CPU cores")


def _dataset(options: DataOptions) -> Finding:
    try:
        found = look_at_data(options)
    except (MissingDataError, CorruptDataError, UnfitTrialError, OSError) as error:
        remedy = "put its files there, or set data.root or LQRAY_DATA on that node"
        return Finding("dataset", "broken", " ".join(str(error).split()), remedy)
    return Finding("dataset", "slow" if found.later else "ok", found.found, found.later)


def _disks(storage: str) -> Iterator[Finding]:
    places = {"temporary files": Path(tempfile.gettempdir())}
    if "://" not in storage:
        place = Path(storage)
        while not place.exists():
            place = place.parent
        places["storage"] = place
    for what, place in places.items():
        free = shutil.disk_usage(place).free
        found = f"{what}, {place}: {free / 2**30:.1f} GiB free"
        enough = free > LEAST_FREE_BYTES
        yield Finding("disk", "ok" if enough else "broken", found, "" if enough else "free space there")


def _reachable(store: str) -> Finding:
    """A connection is tried; that the store answers as it should is `lqray doctor`'s affair."""
    from urllib.parse import urlsplit

    if store.startswith("sqlite:"):
        return Finding("MLflow", "ok", "a sqlite file: only the launcher writes to it")
    parts = urlsplit(store)
    known = {"https": 443, "http": 80, "postgresql": 5432, "mysql": 3306}
    port = parts.port or known.get(parts.scheme.partition("+")[0])
    if port is None or not parts.hostname:
        return Finding("MLflow", "ok", f"{masked(store)}: not looked at")
    where = f"{parts.hostname}:{port}"
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        remedy = "trials run here all the same, but `lqray run FILE` cannot be started here: open the way to the store"
        return Finding("MLflow", "slow", f"{where} cannot be reached: {error}", remedy)
    return Finding("MLflow", "ok", f"{where} answers")
