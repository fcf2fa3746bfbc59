"""The modelled steps of `lqray report --link` beside measured ones: python benchmarks/links.py (root, iproute2).

2 and 4 network namespaces are hosts of one process and one worker each, whose links carry 10 Mbit/s, 100 Mbit/s or
1 Gbit/s each way. On links without a limit each method trains the small GPT of experiments/gpt_small.yaml for some
steps, with lqray's own telemetry at each; `lqray.reporting.modelled` makes of these what `lqray report --link` would,
and says how long a step takes on each link. Then the same steps are run on it. `by_goodput` is the model with what the
link was seen to carry of TCP's bytes, both ways at once, and the latency of an exchange of one byte; `by_rate` with the
rate as it was set and no latency. Seconds are medians over steps after the warm-up.

All hosts share the cores of this machine: four processes on two cores compute half as fast, on every link alike.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from record import RESULTS, write
from timed_trial import WARM_UP, Order, Steps, on_host, on_hosts

from lqray.experiment.grid import read_experiment, with_value
from lqray.experiment.schema import Trial
from lqray.reporting.histories import History, history
from lqray.reporting.links import Link, Step
from lqray.reporting.modelled import modelled_steps
from lqray.store.runs import Run

ROOT = Path(__file__).resolve().parents[1]
RATES = (10, 100, 1000)
HOSTS = (2, 4)
METHODS: dict[str, dict[str, Any]] = {
    "bf16": {"quantizer.method": "bf16"},
    "eden_2_bits": {"quantizer.method": "eden", "quantizer.bits": 2, "quantizer.bucket_size": 512},
    "qsgd_inf_3_bits_scattered": {
        "quantizer.method": "qsgd_inf",
        "quantizer.bits": 3,
        "quantizer.bucket_size": 8192,
        "exchange.reduction": "scatter_reduce",
    },
}
STEPS = 12
"""That are measured, after the warm-up."""
WITHIN = 0.15
_STREAM_SECONDS = 3.0
_PINGS = 50


def trial_of(method: str, workers: int) -> Trial:
    """What a method trains."""
    settings = {
        "workers": workers,
        "telemetry.every": 1,
        "telemetry.samples": 0,
        "schedule.iterations": WARM_UP + STEPS + 1,
        "schedule.evaluate_every": WARM_UP + STEPS + 1,
        **METHODS[method],
    }
    config = read_experiment(ROOT / "experiments/gpt_small.yaml").layout.base
    for key, value in settings.items():
        config = with_value(config, key.split("."), value)
    return Trial.model_validate(config)


def seconds_of(found: Steps) -> float:
    """Of a typical step."""
    return statistics.median(found.seconds[WARM_UP:])


def modelled(found: Mapping[str, tuple[Trial, Steps]]) -> dict[str, Step]:
    """By method, as `lqray report --link` models them from what telemetry recorded."""
    runs = {method: _run(method, trial, steps) for method, (trial, steps) in found.items()}

    def read(key: str) -> dict[str, History]:
        points = {
            method: [(at, one[key]) for at, one in _typical(steps) if key in one]
            for method, (_, steps) in found.items()
        }
        return {method: history(*zip(*own, strict=True), np.zeros(len(own))) for method, own in points.items() if own}

    made = modelled_steps([[run] for run in runs.values()], read)
    missing = [method for method, one in zip(runs, made, strict=True) if one is None]
    if missing:
        raise RuntimeError(f"no modelled step of {', '.join(missing)}")
    return {method: one[0] for method, one in zip(runs, made, strict=True) if one}


def _typical(found: Steps) -> list[tuple[int, dict[str, float]]]:
    return [(int(at), values) for at, values in found.measured.items() if int(at) >= WARM_UP]


def _run(method: str, trial: Trial, found: Steps) -> Run:
    return Run(method, trial.id, method, "FINISHED", trial.params(), _typical(found)[-1][1])


def link_on_host(rate: float) -> None:
    """Rank 0 prints `LINK`, the share of the rate that two hosts' streams carry both ways, and the seconds that a byte
    takes there. rate: bits a second."""
    from_here, size = int(os.environ["RANK"]) == 0, int(rate / 8 * _STREAM_SECONDS)
    peer = _connected(from_here)
    took = _seconds_of_streams(peer, size)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pings = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        if from_here:
            peer.sendall(b"x")
        _receive(peer, 1)
        if not from_here:
            peer.sendall(b"x")
        pings.append((time.perf_counter() - began) / 2)
    if from_here:
        print("LINK " + json.dumps([_STREAM_SECONDS / took, statistics.median(pings)]), flush=True)


def _connected(serves: bool) -> socket.socket:
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if serves:
        with socket.create_server(address) as server:
            return server.accept()[0]
    for _ in range(100):
        try:
            return socket.create_connection(address)
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"nobody is at {address}")


def _seconds_of_streams(peer: socket.socket, size: int) -> float:
    peer.sendall(b"x")
    _receive(peer, 1)
    began = time.perf_counter()
    sender = threading.Thread(target=peer.sendall, args=(bytes(size),))
    sender.start()
    _receive(peer, size)
    sender.join()
    peer.sendall(b"x")
    _receive(peer, 1)
    return time.perf_counter() - began


def _receive(peer: socket.socket, size: int) -> None:
    while size:
        size -= len(peer.recv(min(size, 1 << 20)))


def goodput(megabits: int) -> tuple[float, float]:
    """(bits a second that a link carries of TCP's bytes, both ways at once; seconds of a message of a byte)."""
    from tests.testing.shaped_hosts import shaped_hosts

    with shaped_hosts(2, f"{megabits}mbit") as hosts:
        said = hosts.run([sys.executable, __file__, "--link", str(1e6 * megabits)], timeout=300)
    line = next(line for line in said[0].splitlines() if line.startswith("LINK "))
    share, latency = json.loads(line.removeprefix("LINK "))
    return share * 1e6 * megabits, latency


def rows_of(hosts: int, rates: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every method on every link."""
    trials = {method: trial_of(method, hosts) for method in METHODS}

    def steps(method: str, rate: str | None) -> Steps:
        order = Order(trials[method].config(), "", True, 0.0, 1e9, steps=WARM_UP + STEPS)
        return on_hosts(__file__, order, hosts, rate, timeout=1800)[0]

    unlimited = {method: (trial, steps(method, None)) for method, trial in trials.items()}
    models = modelled(unlimited)
    rows = []
    for rate in rates:
        carried, latency = goodput(rate)
        for method, model in models.items():
            measured = seconds_of(steps(method, f"{rate}mbit"))
            by_rate = model.seconds(hosts, Link("", 1e6 * rate))
            by_goodput = model.seconds(hosts, Link("", carried, latency))
            rows.append(
                {
                    "hosts": hosts,
                    "link_megabits": rate,
                    "goodput_megabits": carried / 1e6,
                    "latency_seconds": latency,
                    "method": method,
                    "measured": measured,
                    "by_goodput": by_goodput,
                    "by_goodput_over_measured": by_goodput / measured,
                    "by_rate": by_rate,
                    "by_rate_over_measured": by_rate / measured,
                    "unlimited": seconds_of(unlimited[method][1]),
                    "model": vars(model),
                }
            )
            seconds = f"{measured:8.4f} s, modelled {by_goodput:8.4f} s, by rate {by_rate:8.4f} s"
            say(f"{hosts} hosts {rate:>5} Mbit/s {method:26} {seconds}")
    return rows


def targets_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Every row within 15%."""
    return {
        f"{one['hosts']} hosts, {one['link_megabits']} Mbit/s, {one['method']}: within 15%": abs(
            one["by_goodput_over_measured"] - 1
        )
        <= WITHIN
        for one in rows
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table: measured seconds of a step, and in brackets by how much the model is off, by goodput."""
    rates = sorted({one["link_megabits"] for one in rows})
    found = {(one["hosts"], one["method"], one["link_megabits"]): one for one in rows}
    head = "| hosts | method | " + " | ".join(f"{rate} Mbit/s" for rate in rates) + " |"
    lines = [head, "| --- | --- |" + " ---: |" * len(rates)]
    for hosts, method in dict.fromkeys((one["hosts"], one["method"]) for one in rows):
        cells = [
            f"{one['measured']:.3f} s ({100 * (one['by_goodput_over_measured'] - 1):+.0f}%)"
            for rate in rates
            if (one := found.get((hosts, method, rate)))
        ]
        lines.append(f"| {hosts} | `{method}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    from tests.testing.shaped_hosts import why_not

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", nargs="+", type=int, default=HOSTS)
    parser.add_argument("--rates", nargs="+", type=int, default=RATES, help="Mbit/s")
    parser.add_argument("--out", type=Path, default=RESULTS / "links.json")
    parser.add_argument("--table", action="store_true", help="run nothing; print what the file says, in Markdown")
    choice = parser.parse_args(arguments)
    if choice.table:
        print(markdown(json.loads(choice.out.read_text())["figures"]["rows"]))
        return
    if reason := why_not():
        print(f"benchmarks/links.py is left out: {reason}", file=sys.stderr)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the ends of hosts and their processes
    rows: list[dict[str, Any]] = []
    for hosts in choice.hosts:
        rows += rows_of(hosts, choice.rates, lambda line: print(line, flush=True))
        write(choice.out, {"rows": rows}, targets_of(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--host"]:
        on_host(sys.argv[2])
    elif sys.argv[1:2] == ["--link"]:
        link_on_host(float(sys.argv[2]))
    else:
        main(sys.argv[1:])
