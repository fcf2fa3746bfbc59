"""The Ray that trials run on: a cluster's, where there is one, or one of this machine's own for the launch."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lqray.orchestration.launchers.contract import LaunchInterrupted
from lqray.orchestration.launchers.presence import MARK_VARIABLE, Presence, end_processes_of
from lqray.orchestration.launchers.ray.access import loopback_only, offer_token, provide_token, token_file
from lqray.orchestration.signals import noting
from lqray.training.reports import loopback_variables

# Supported knobs of Ray Train: poll workers ten times as often, which is what a short trial waits for, and do not watch
# for preemption notices.
_TRAIN_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_QUIET_SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_SETTINGS = {**_TRAIN_SETTINGS, **_QUIET_SETTINGS}

LIMIT_VARIABLE = "LQRAY_CLUSTER_LIMIT"
_ANSWER_SECONDS = 5.0
_LEAVE_SECONDS = 10.0
_log = logging.getLogger(__name__)


class ClusterError(ConnectionError):
    """The Ray that RAY_ADDRESS names cannot be joined, none can be started, or what is said of it makes no sense."""


class RayLostError(LaunchInterrupted):
    """A process without which Ray does not go on has ended; says which, and what to do. work: the thread that was left
    behind with what it did on Ray."""

    def __init__(self, text: str, work: threading.Thread | None = None) -> None:
        super().__init__(text)
        self.work = work


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process is part of. resources: its total, by kind. gcs_address: of its head. session: its folder,
    which names all its processes on this machine. raylet_socket: of this machine's raylet. folder: of a Ray of our own,
    see `Presence`; None of one that was joined. limit: what LQRAY_CLUSTER_LIMIT says. ip: of this machine, as Ray knows
    it."""

    resources: dict[str, float]
    gcs_address: str
    session: str
    raylet_socket: str
    folder: Path | None = None
    limit: Mapping[str, float] = field(default_factory=dict)
    ip: str = ""


@contextmanager
def ray_cluster(
    need: Mapping[str, float],
    verbose: bool,
    environment: Mapping[str, str] | None = None,
    presence: Presence | None = None,
    most: int | None = None,
) -> Iterator[Cluster]:
    """Ray while the context lasts. Its total resources are those that are there, or, where LQRAY_CLUSTER_LIMIT says
    so (`CPU=64,GPU=8`), those that an autoscaler may add when trials wait for them.

    It is the one at RAY_ADDRESS, or that of a `ray start` on this machine, or else (always with RAY_ADDRESS=local) one
    of our own, in the folder of `presence`; never that of another launch, which ends with it. Our own has the cores
    that other launches leave, at most `most`, and at least the CPUs that one trial needs, so that a trial of more
    workers than cores still runs, slowly; it ends with the context, with all its processes. environment: of worker
    processes, from their start. Handlers of signals stay as they are. Raises ClusterError when RAY_ADDRESS cannot be
    joined or Ray not be started.
    """
    limit = _limit(os.environ.get(LIMIT_VARIABLE, ""))
    address = cluster_address()
    if presence is None and address is None:
        raise ClusterError("no Ray runs here: set RAY_ADDRESS to the cluster's, or start one with `ray start --head`")
    folder = presence.folder if presence and not address else None
    _set_up(address)
    import ray  # which reads then what was set

    try:
        known = _connected(address, need, verbose, environment or {}, presence, most).address_info
        there = ray.cluster_resources()
        yield Cluster(
            there | {kind: max(there.get(kind, 0.0), amount) for kind, amount in limit.items()},
            known["gcs_address"],
            known["session_dir"],
            known["raylet_socket_name"],
            folder,
            limit,
            known["node_ip_address"],
        )
    except RayLostError as error:
        threading.Thread(target=_leave_lost, args=(error.work,), daemon=True).start()
        raise
    except BaseException:
        _shut_down()
        raise
    else:
        _shut_down()
    finally:
        if folder:
            end_processes_of(folder)


@contextmanager
def running_cluster() -> Iterator[dict[str, float]]:
    """As `ray_cluster`, but only one that runs already: its resources. Raises ClusterError when there is none."""
    with ray_cluster({}, verbose=False) as cluster:
        yield cluster.resources


def _set_up(address: str | None) -> None:
    """What Ray reads when it is imported."""
    if address:
        offer_token()
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)


def _connected(
    address: str | None,
    need: Mapping[str, float],
    verbose: bool,
    environment: Mapping[str, str],
    presence: Presence | None,
    most: int | None,
) -> Any:
    """Ray's context, once this process is part of the Ray at an address, or of one that is started."""
    if not verbose:
        # Tune logs what the launcher already tells in its own words.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        _silence_rays_voice()
    options = {"logging_level": "INFO" if verbose else "ERROR", "log_to_driver": verbose}
    if address:
        variables = {**{key: os.environ[key] for key in _SETTINGS}, **environment}
        return _join(address, runtime_env={"env_vars": variables}, **options)
    assert presence is not None
    share = presence.take(int(need["CPU"]), most)
    if share.others:
        _log.warning("%s", share)
    runtime = {"env_vars": {**loopback_variables(), **environment}}
    return _start(presence.folder, share.cores, runtime_env=runtime, **options)


def limit_said() -> bool:
    """Whether LQRAY_CLUSTER_LIMIT says what a cluster may grow to."""
    return bool(os.environ.get(LIMIT_VARIABLE))


def cluster_address() -> str | None:
    """Of the Ray to join: what RAY_ADDRESS says, or of the last `ray start` on this machine, if it still answers. None:
    there is none, or RAY_ADDRESS=local. `ray start` alone writes its address down; a Ray of another launch is never
    found, and what another user wrote down does not count: everybody can write to Ray's folder in /tmp. Raises
    ClusterError where RAY_ADDRESS=auto insists on a Ray that is not there."""
    chosen = os.environ.get("RAY_ADDRESS", "")
    if chosen == "local":
        return None
    if chosen not in ("", "auto"):
        return chosen
    for file in _address_files():
        try:
            written_by = file.lstat().st_uid
            address = file.read_text().strip()
        except (OSError, ValueError):
            continue
        if written_by not in (os.getuid(), 0):
            _log.warning(
                "%s names a Ray at %s, but another user (%d) wrote it: it is passed over; if you trust them with your "
                "code and your token, set RAY_ADDRESS to it",
                file,
                repr(address[:100]),
                written_by,
            )
            continue
        if address and answers(address):
            return address
        _log.warning("%s names a Ray at %s, where nothing answers: it is passed over", file, address or "no address")
    if chosen == "auto":
        raise ClusterError(
            "RAY_ADDRESS=auto, and no Ray of `ray start` runs on this machine (another launch's own is not joined); "
            "allowed: HOST:PORT of a cluster, local for a Ray of this launch's own, or leave it out"
        )
    return None


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _address_files() -> list[Path]:
    """Where `ray start` writes its address, if it was not given another --temp-dir; that of the environment first."""
    places = [os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp"]
    return list(dict.fromkeys(Path(place) / "ray" / "ray_current_cluster" for place in places if place))


def _join(address: str, **options: Any) -> Any:
    import ray

    check_reachable(address)
    try:
        with _same_handlers():
            return ray.init(address=address, job_config=_job_config(), **options)
    except ConnectionError as error:
        raise ClusterError(_why(address, error)) from error


def _start(folder: Path, cores: int, **options: Any) -> Any:
    """A Ray of our own. On a busy machine its processes may not be up within the half minute that Ray gives them: then
    it is tried again, twice."""
    import ray

    try:
        provide_token()
    except OSError as error:
        raise ClusterError(
            f"the token of a Ray of this launch's own cannot be kept in {token_file()}: {error.strerror or error}; "
            "let this user write there, or set RAY_AUTH_TOKEN_PATH to a file that only this user reads, or run with "
            "--launcher inline, which does without Ray"
        ) from error
    os.environ[MARK_VARIABLE] = str(folder)
    try:
        for left in (2, 1, 0):
            try:
                with _same_handlers(), loopback_only():
                    # Its dashboard is a dozen processes, and nothing here asks it, nor for metrics, which would be
                    # given to everybody, without a token.
                    return ray.init(
                        address="local",
                        num_cpus=cores,
                        include_dashboard=False,
                        _temp_dir=str(folder),
                        job_config=_job_config(),
                        _system_config={"enable_metrics_collection": False},
                        **options,
                    )
            except Exception as error:  # Ray raises all kinds, and Exception itself when it took too long
                reason = " ".join(str(error).split())[:300]
                if not left or "timed out" not in reason:
                    raise ClusterError(
                        f"Ray did not start on this machine: {reason} (its files are in {folder}: is there space, and "
                        "memory?); run again, or with --launcher inline, which does without Ray"
                    ) from error
                _log.warning("Ray did not start in time on this busy machine; it is tried again")
                _shut_down()
                end_processes_of(folder, patience=0.0)
    finally:
        del os.environ[MARK_VARIABLE]


class _SafePaths(list[str]):
    """Folders that Ray puts at the front of its workers' search path, without the current one: a file queue.py there
    would be taken for Python's own. It stays where lqray itself is found through it."""

    def extend(self, paths: Iterable[str]) -> None:
        """As of a list."""
        current = Path.cwd()
        super().extend(one for one in paths if Path(one) != current or (current / "lqray" / "orchestration").is_dir())


def _job_config() -> Any:
    """None within a job: Ray has its configuration, and a folder of the job's own in it."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _SafePaths()
    return config


def _shut_down() -> None:
    """Leave Ray, whatever signals come: they are acted on afterwards. On its way, seconds before it is done, Ray gives
    SIGTERM back to the system below Python, where it would end this process at once: ours is set again and again. A
    head that does not answer, but has not ended, is asked for ever: it is left behind."""
    import ray

    with noting():
        leaving = threading.Thread(target=ray.shutdown, daemon=True)
        leaving.start()
        deadline = time.monotonic() + _LEAVE_SECONDS
        while leaving.is_alive() and time.monotonic() < deadline:
            with _same_handlers():
                leaving.join(0.02)


def _leave_lost(work: threading.Thread | None) -> None:
    """What is gone is waited for in there for a minute, and not before the work that was left behind has ended: Ray
    ends a process that uses it after that (2.60), and ends of trials are still being recorded."""
    import ray

    if work:
        work.join()
    ray.shutdown()


def _silence_rays_voice() -> None:
    """Whatever it was told of logs, Ray prints what it notices of its processes, with fifty lines of a dead one's."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, **_: _log.info("%s", "\n".join(map(str, data.get("lines", ()))))


@contextmanager
def _same_handlers() -> Iterator[None]:
    """Ray takes SIGTERM for itself, in Python and below it (native stacks and exit code 134): give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    chosen = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.getsignal(number) for number in chosen}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not set from Python
                signal.signal(number, handler)


def check_reachable(address: str) -> None:
    """Raise ClusterError, within seconds, where nothing answers at RAY_ADDRESS: Ray itself would try for minutes, and
    heed no signal."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local") or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"nothing answers at RAY_ADDRESS={address}: {error.strerror or error}. Start that Ray, or correct the "
            "address, or set RAY_ADDRESS=local for a Ray of this launch's own"
        ) from error


def _limit(text: str) -> dict[str, float]:
    try:
        pairs = [part.split("=") for part in text.split(",") if part.strip()]
        return {kind.strip(): float(amount) for kind, amount in pairs}
    except ValueError as error:
        raise ClusterError(
            f"{LIMIT_VARIABLE}: found {text!r}; allowed: what the cluster may grow to, such as CPU=64,GPU=8"
        ) from error


def on_this_node() -> Any:
    """Ray's option for an actor that shall live and die with the process that makes it: no other node's end ends it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _why(address: str, error: ConnectionError) -> str:
    return (
        f"no Ray could be joined at RAY_ADDRESS={address} ({error}).\n"
        f"Found RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', '(unset)')}; a cluster that asks for a token wants its "
        "own in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token. "
        "Check that it runs (`ray status`), or set RAY_ADDRESS=local for a Ray of this launch's own."
    )
