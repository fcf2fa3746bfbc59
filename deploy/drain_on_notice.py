"""On a spot machine of a Ray cluster: waits for the notice that it is taken away, and has Ray drain it.

    nohup python deploy/drain_on_notice.py &        asks AWS's or Google's metadata server every 5 s
    python deploy/drain_on_notice.py --now 30       drains at once: for other clouds' notices, or by hand

Trials of `lqray run` on the machine then write a checkpoint and continue on others. Started after `ray start`, as who
started that; it needs Ray's token in the environment or ~/.ray/auth_token, where the cluster has one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

AWS, GOOGLE = "http://169.254.169.254", "http://metadata.google.internal"
POLL_SECONDS = 5.0
GOOGLE_SECONDS = 30.0
"""Between Google's notice and the end."""


def asked(url: str, headers: Mapping[str, str], method: str = "GET") -> str | None:
    """What a metadata server answers; None where it has nothing there. Raises OSError where none answers."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def notice(aws: str = AWS, google: str = GOOGLE) -> float | None:
    """Seconds that are left to this machine; None without a notice. Raises OSError where neither server answers."""
    try:
        token = asked(f"{aws}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
        found = asked(f"{aws}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""})
    except OSError:
        preempted = asked(f"{google}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        return GOOGLE_SECONDS if preempted == "TRUE" else None
    if found is None:
        return None
    when = datetime.strptime(json.loads(found)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - time.time())


def drain(seconds: float) -> int:
    """Have this machine's Ray drained, as one that is gone in so many seconds; `ray drain-node`'s exit code."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if os.environ.get("RAY_AUTH_TOKEN") or token.exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), logging_level="ERROR")
    context = ray.get_runtime_context()
    which = [f"--address={context.gcs_address}", f"--node-id={context.get_node_id()}"]
    ray.shutdown()
    why = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *which, *why]
    return subprocess.run([*command, f"--deadline-remaining-seconds={int(seconds)}"]).returncode


def main() -> int:
    """Until the machine is drained; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--now", type=float, metavar="SECONDS", help="drain at once; the machine is gone then")
    left, said = parser.parse_args().now, False
    while left is None:
        try:
            left = notice()
        except OSError as error:
            if not said:
                say(f"no metadata server of AWS or Google answers, which is tried again: {error}")
            said = True
        if left is None:
            time.sleep(POLL_SECONDS)
    say(f"this machine is gone in {left:.0f} s: it is drained")
    return drain(left)


def say(line: str) -> None:
    """At once, for who reads the log of a machine that is gone."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
