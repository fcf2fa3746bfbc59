"""The Ray that trials run on: a cluster's, where there is one, or one of this machine's own for the launch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def ray_cluster(need: Mapping[str, float], verbose: bool) -> Iterator[dict[str, float]]:
    """Ray while the context lasts; yields its total resources.

    With RAY_ADDRESS set, or a cluster running on this machine, it is that one (RAY_ADDRESS=local insists on one of our
    own). Our own has at least the CPUs that one trial needs, so that a trial of more workers than cores still runs,
    slowly; it ends with the context, with all its processes.
    """
    settings = {**_TRAIN_SETTINGS, **_QUIET_SETTINGS}
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    import ray

    if not verbose:
        # Tune logs what the launcher already tells in its own words.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    level = "INFO" if verbose else "ERROR"
    address = os.environ.get("RAY_ADDRESS")
    joined = False
    if address != "local":
        try:
            ray.init(
                address=address or "auto",
                logging_level=level,
                log_to_driver=verbose,
                runtime_env={"env_vars": {key: os.environ[key] for key in settings}},
            )
            joined = True
        except ConnectionError:
            if address:
                raise
    if not joined:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        ray.init(
            address="local",
            num_cpus=max(cores, int(need["CPU"])),
            include_dashboard=True,
            logging_level=level,
            log_to_driver=verbose,
        )
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()
