"""The Ray that trials run on: a cluster's, where there is one, or one of this machine's own for the launch."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


_REACH_SECONDS = 5.0
LIMIT_VARIABLE = "LQRAY_CLUSTER_LIMIT"


class ClusterError(ConnectionError):
    """The Ray that RAY_ADDRESS names cannot be joined, or what is said of it makes no sense."""


@contextmanager
def ray_cluster(
    need: Mapping[str, float], verbose: bool, environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, float]]:
    """Ray while the context lasts; yields its total resources: those that are there, or, where LQRAY_CLUSTER_LIMIT says
    so (`CPU=64,GPU=8`), those that an autoscaler may add when trials wait for them.

    With RAY_ADDRESS set, or a cluster running on this machine, it is that one (RAY_ADDRESS=local insists on one of our
    own). Our own has at least the CPUs that one trial needs, so that a trial of more workers than cores still runs,
    slowly; it ends with the context, with all its processes. environment: of worker processes, from their start. Raises
    ClusterError when RAY_ADDRESS cannot be joined.
    """
    address = os.environ.get("RAY_ADDRESS")
    limit = _limit(os.environ.get(LIMIT_VARIABLE, ""))
    if address and address != "local":
        offer_token()
    settings = {**_TRAIN_SETTINGS, **_QUIET_SETTINGS}
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    import ray

    if not verbose:
        # Tune logs what the launcher already tells in its own words.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    level = "INFO" if verbose else "ERROR"
    joined = False
    if address != "local":
        if address:
            check_reachable(address)
        try:
            ray.init(
                address=address or "auto",
                logging_level=level,
                log_to_driver=verbose,
                runtime_env={"env_vars": {**{key: os.environ[key] for key in settings}, **(environment or {})}},
            )
            joined = True
        except ConnectionError as error:
            if address:
                raise ClusterError(_why(address, error)) from error
    if not joined:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        ray.init(
            address="local",
            num_cpus=max(cores, int(need["CPU"])),
            runtime_env={"env_vars": dict(environment)} if environment else None,
            include_dashboard=True,
            logging_level=level,
            log_to_driver=verbose,
        )
    try:
        there = ray.cluster_resources()
        yield there | {kind: max(there.get(kind, 0.0), amount) for kind, amount in limit.items()}
    finally:
        ray.shutdown()


@contextmanager
def running_cluster() -> Iterator[dict[str, float]]:
    """As `ray_cluster`, but only one that runs already. Raises ClusterError when there is none."""
    if os.environ.get("RAY_ADDRESS") in (None, "", "local"):
        os.environ["RAY_ADDRESS"] = "auto"
    with ray_cluster({}, verbose=False) as resources:
        yield resources


def check_reachable(address: str) -> None:
    """Raise ClusterError, within seconds, where nothing answers at RAY_ADDRESS: Ray itself would try for minutes, and
    heed no signal."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local") or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
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


def offer_token() -> None:
    """Show this user's Ray token, where there is one, to the cluster at RAY_ADDRESS.

    `ray start` and `ray.init` ask for a token as soon as the user has one, but with an address `ray.init` shows it only
    when RAY_AUTH_MODE says so; a cluster that asks for none ignores it. Ray reads the setting when it is imported.
    """
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_TOKEN" in os.environ or token_file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _why(address: str, error: ConnectionError) -> str:
    return (
        f"no Ray could be joined at RAY_ADDRESS={address} ({error}).\n"
        f"Found RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', '(unset)')}; a cluster that asks for a token wants its "
        "own in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token. "
        "Check that it runs (`ray status`), or set RAY_ADDRESS=local for a Ray of this launch's own."
    )
