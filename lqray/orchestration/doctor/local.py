"""What `lqray doctor` looks at: is everything here that a sweep needs, and which backend serves what."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lqray.experiment.secrets import masked
from lqray.experiment.store import sqlite_path
from lqray.orchestration.launchers.ray.cluster import ClusterError, check_reachable
from lqray.orchestration.plan.feasible import loopback_problem
from lqray.store.client import exists, reading_client
from lqray.store.outage import explained

LEAST_FREE_BYTES = 1 << 30
_INSTALL = "`make run` in lqray's source tree installs the versions tested into .venv"


@dataclass(frozen=True)
class Finding:
    """One thing looked at. state: ok; slow (works, but not as it could); broken. remedy: what to do about it."""

    what: str
    state: Literal["ok", "slow", "broken"]
    found: str
    remedy: str = ""


def shown(finding: Finding) -> str:
    """A finding in a line, or as many as it has, without passwords, and its remedy in another."""
    marks = {"ok": "ok    ", "slow": "slow  ", "broken": "BROKEN"}
    found = masked(finding.found).replace("\n", f"\n{'':28}")
    line = f"{marks[finding.state]}  {finding.what:18}  {found}"
    return f"{line}\n{'':28}remedy: {finding.remedy}" if finding.remedy else line


def machine(store: str) -> str:
    """All findings, in lines. store: as of `examine`."""
    return "\n".join(shown(finding) for finding in examine(store))


def examine(store: str) -> Iterator[Finding]:
    """Every finding, as it is made. store: an MLflow tracking URI, absolute."""
    yield from _versions()
    yield from operator_findings()
    yield from _devices()
    yield _loopback()
    yield _ray()
    yield _store(store)
    yield writable("this directory", Path.cwd(), "run lqray in a directory of your own")
    yield writable("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to a directory with space")


def _versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    yield Finding("python", "ok", platform.python_version())
    try:
        requires = [Requirement(text) for text in importlib.metadata.requires("lqray") or []]
    except importlib.metadata.PackageNotFoundError:  # its source tree alone is here, as in a job on a bare machine
        yield Finding("lqray", "broken", "not installed", _INSTALL)
        return
    needed = {one.name.lower(): one.specifier for one in requires if one.marker is None}
    yield Finding("lqray", "ok", importlib.metadata.version("lqray"))
    for name in ("torch", "torchvision", "ray", "mlflow", "numpy", "scipy"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "broken", "not installed", _INSTALL)
            continue
        if needed[name].contains(version, prereleases=True):
            yield Finding(name, "ok", version)
        else:
            yield Finding(name, "broken", f"{version}, allowed: {needed[name]}", _INSTALL)


def operator_findings() -> Iterator[Finding]:
    """Which backend serves which operator, of which library, and whether the bytes are right."""
    import torch

    from lqray import ops

    gpus = _kinds_of_gpus()
    if not gpus and torch.version.cuda:  # a machine that builds, or from which a sweep is launched
        library, reason = _serving("cuda")
        yield Finding("CUDA kernels", "ok", f"{reason or library}; no GPU here")
    for device in ("cpu", *gpus):
        by_backend: dict[str, list[str]] = {"native": [], "reference": []}
        only = ops.native.CPU_OPERATORS if device == "cpu" else ()
        for operator in (*ops.native.OPERATORS, *only):
            by_backend[ops.native.backend(operator, device)].append(operator)
        what, (library, reason) = f"operators on {device}", _serving(device)
        if by_backend["reference"]:
            why = reason or f"no kernels for it in {library}"
            remedy = _rebuild(device) + ("" if reason else ", its architecture in TORCH_CUDA_ARCH_LIST")
            yield Finding(what, "slow", f"reference: {', '.join(by_backend['reference'])} ({why})", remedy)
        else:
            yield Finding(what, "ok", f"native ({library}): {', '.join(by_backend['native'])}")
        yield _self_test(device)


def _kinds_of_gpus() -> list[str]:
    """A device of each compute capability; of one alone just "cuda"."""
    import torch

    first: dict[tuple[int, int], str] = {}
    for index in range(torch.cuda.device_count()):
        first.setdefault(torch.cuda.get_device_capability(index), f"cuda:{index}")
    return ["cuda"] if len(first) == 1 else list(first.values())


def _serving(device: str) -> tuple[str, str | None]:
    """The library for a device, and what its kernels were compiled for; why none is loaded."""
    from lqray import ops

    if device == "cpu":
        path, compiled, reason = ops.loaded.path, ops.loaded.instruction_set, ops.loaded.reason
    else:
        path, compiled, reason = ops.loaded.cuda.path, " ".join(ops.loaded.cuda.architectures), ops.loaded.cuda.reason
    return f"{path.name}: {compiled}" if path else os.environ.get("LQRAY_NATIVE_LIBRARY", ""), reason


def _rebuild(device: str) -> str:
    cuda = "" if device == "cpu" else "LQRAY_CUDA=1 "
    return f"{cuda}lqray build-native, where a C++ compiler{' and nvcc are' if cuda else ' is'}"


def _self_test(device: str) -> Finding:
    """Bytes of the operators against the reference's."""
    import torch

    from lqray import ops
    from lqray.ops import reference

    x, levels = torch.sin(torch.arange(5000.0)), torch.linspace(-1, 1, 8)
    expected = reference.encode_fused(x, levels, 3, 512, "linf", 1, 2)
    found = ops.encode_fused(x.to(device), levels.to(device), 3, 512, "linf", 1, 2).cpu()
    decoded = ops.decode(found.to(device), levels.to(device), 5000, 3, 512).cpu()
    if torch.equal(found, expected) and torch.equal(decoded, reference.decode(expected, levels, 5000, 3, 512)):
        return Finding(f"bytes on {device}", "ok", "equal to the reference's")
    return Finding(f"bytes on {device}", "broken", "differ from the reference's", "set LQRAY_NATIVE=0 and report it")


def _devices() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("CPU", "ok", f"{cores} cores, {platform.machine()}")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("GPU", "ok", ", ".join(names) or "none: training runs on the CPU")


def _loopback() -> Finding:
    problem = loopback_problem()
    if problem:
        return Finding("loopback", "broken", problem, "ip link set lo up")
    return Finding("loopback", "ok", "127.0.0.1 answers")


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS", "")
    if not address or address in ("local", "auto"):
        return Finding("Ray", "ok", address or "a launch starts its own, or joins one that runs here")
    try:
        check_reachable(address)
    except ClusterError as error:
        return Finding("Ray", "broken", str(error), "start it, or set RAY_ADDRESS=local")
    return Finding("Ray", "ok", f"something answers at RAY_ADDRESS={address}")


def _store(uri: str) -> Finding:
    what = "MLflow store"
    path = sqlite_path(uri)
    try:
        if path and not exists(uri):
            if os.access(path.parent, os.W_OK):
                return Finding(what, "ok", f"{uri}: the first run makes it")
            return Finding(what, "broken", f"{path.parent} cannot be written to", "choose another: --uri, tracking.uri")
        count = len(reading_client(uri).search_experiments())
        return Finding(what, "ok", f"{uri}: {count} experiments")
    except Exception as error:  # whatever a store can raise, it is what the user needs to see
        return Finding(what, "broken", f"{uri}: {explained(error)}", "is its server running? check --uri")


def writable(what: str, folder: Path, remedy: str) -> Finding:
    """Whether this user can write to a folder that is there, and it has space."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(what, "broken", f"{folder}: {error.strerror}", remedy)
    state: Literal["ok", "broken"] = "ok" if free > LEAST_FREE_BYTES else "broken"
    return Finding(what, state, f"{folder}: {free / 2**30:.1f} GiB free", "" if state == "ok" else remedy)
