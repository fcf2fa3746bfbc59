"""Seconds until a model is as good as it should be, over limited links: python benchmarks/time_to_target.py (root,
iproute2).

Two network namespaces are two hosts, one process and one core each, whose links carry 10 Mbit/s, 100 Mbit/s or 1 Gbit/s
each way (`--links`). Each run is a trial of an experiment's file, trained by lqray's own loop from its first step until
a test metric reaches the target, or its schedule ends. Seconds are wall time of training on rank 0, without
evaluations. `measured` rows are such runs. With `--measured-steps N` the others are extrapolated: what a step changes
does not depend on the link, so the steps to the target are those of one run, with links that are not limited, which
goes on to the end of its schedule, and the seconds those of the first steps on the link (12, or a round of
`exchange.every`), and for each further one the mean over N after them. What comes seldom, such as a later fit of
levels, is then counted as often as it came within N. Nor do seconds depend on the seed: with `--steps-of-seed S` the
steps of that seed are measured on each link, and count for all seeds.

`compute` is a step of one process that exchanges nothing, both hosts at the same time. `possible` is how much faster
than bf16's a step could be if bytes and coding cost nothing and bf16 hid none of its own: (compute + bf16's bytes over
the link's rate) / compute. encode, exchange and decode are an exchange's phases as it counts them: buckets overlap one
another and the backward pass, so they add up to more than a step takes. torch's own exchanges count none.

Every run is written when it is over. A later call goes on: rows of equal trial, link, target and N are not run again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from record import RESULTS, write
from target_summary import markdown, place, summary, targets_of
from timed_trial import PHASES, Order, Steps, on_host, on_hosts, totalled, typical, warm_up

from lqray.experiment.grid import read_experiment, with_value
from lqray.experiment.headline import headline_of
from lqray.experiment.schema import Trial

ROOT = Path(__file__).resolve().parents[1]
COMPUTE_STEPS = 30
SHORTEST = 20.0
HOSTS = 2
UNLIMITED = 0


@dataclass(frozen=True)
class Workload:
    """A trial to be: what `base` of an experiment's file says, with settings on top of it. target: of the headline."""

    file: str
    target: float
    settings: Mapping[str, Any]


_SILENT = {"telemetry.every": 0, "telemetry.samples": 0}
_RESNET = {
    "schedule.iterations": 600,
    "schedule.decay": "cosine",
    "schedule.decay_at": [],
    "schedule.evaluate_every": 32,
    "workers": 4,
}
_MUON = {
    "optimizer": {
        "name": "muon",
        "lr": 0.02,
        "adamw_lr": 0.002,
        "momentum": 0.8,
        "weight_decay": 0.1,
        "decayed": "matrices",
        "clip_norm": 1.0,
    }
}
_FEW = {"data": {"name": "digits"}, "schedule.iterations": 200, "schedule.evaluate_every": 8}
WORKLOADS = {
    "gpt_small": Workload("gpt_small.yaml", 2.4, {"schedule.evaluate_every": 8}),
    "gpt_small_muon": Workload("gpt_small.yaml", 2.4, {"schedule.evaluate_every": 8, **_MUON}),
    "fashion_mnist": Workload("fashion_mnist.yaml", 0.86, _RESNET),
    "digits": Workload("fashion_mnist.yaml", 0.97, {**_RESNET, **_FEW}),
}
METHODS: dict[str, dict[str, Any]] = {
    "full_precision": {"method": "full_precision"},
    "bf16": {"method": "bf16"},
    "fp16": {"method": "fp16"},
    "powersgd_rank_4": {"method": "powersgd", "rank": 4},
    "qsgd_inf_3_bits": {"method": "qsgd_inf", "bits": 3, "bucket_size": 8192},
    "alq_3_bits": {"method": "alq", "bits": 3, "bucket_size": 8192},
    "eden_1_bit": {"method": "eden", "bits": 1, "bucket_size": 512},
    "eden_2_bits": {"method": "eden", "bits": 2, "bucket_size": 512},
    "allocated_2_bits": {"method": "allocated", "bits": 2, "bucket_size": 64},
    "allocated_3_bits": {"method": "allocated", "bits": 3, "bucket_size": 64},
}
EVERY = {f"{name}_every_{every}": (name, every) for name in ("eden_1_bit", "eden_2_bits") for every in (4, 8, 32)}
OUTER = {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0}
"""The mean of parameters, as in experiments/diloco.yaml."""


@dataclass(frozen=True)
class Choice:
    """The options of the command line."""

    workloads: Sequence[str] = ("gpt_small",)
    links: Sequence[int] = (10, 100, 1000)
    methods: Sequence[str] = (*METHODS, *EVERY)
    seeds: Sequence[int] = (1,)
    minutes: float = 60.0
    measured_steps: int | None = None
    steps_of_seed: int | None = None
    target: float | None = None
    iterations: int | None = None
    evaluate_every: int | None = None
    out: Path = RESULTS / "time_to_target.json"
    table: bool = False

    def target_of(self, workload: str) -> float:
        return WORKLOADS[workload].target if self.target is None else self.target

    def trial(self, workload: str, method: str, seed: int) -> Trial:
        """Of a method of METHODS or EVERY; `sgd`: what one process computes, of all its workers' batches, by itself."""
        quantizer, every = EVERY.get(method, (method, None))
        settings = {**WORKLOADS[workload].settings, **_SILENT, "seed": seed}
        if self.iterations is not None:
            settings["schedule.iterations"] = self.iterations
        if self.evaluate_every is not None:
            settings["schedule.evaluate_every"] = self.evaluate_every
        settings |= {f"quantizer.{key}": value for key, value in METHODS.get(quantizer, {"method": quantizer}).items()}
        if every is not None:
            settings |= {"exchange.every": every, "exchange.outer": OUTER, "exchange.error_feedback": True}
        config = read_experiment(ROOT / "experiments" / WORKLOADS[workload].file).layout.base
        if method == "sgd":
            share = settings.get("workers", config["workers"]) // 2
            settings |= {"schedule.batch_size": share * config["schedule"]["batch_size"], "schedule.accumulate": share}
        for key, value in settings.items():
            config = with_value(config, key.split("."), value)
        return Trial.model_validate(config)


class Results:
    """Rows so far, and seconds of a step's computing, as they are in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kept = json.loads(path.read_text())["figures"] if path.exists() else {}
        self.rows: list[dict[str, Any]] = kept.get("rows", [])
        self.compute: dict[str, float] = kept.get("compute_seconds", {})

    def add(self, row: dict[str, Any]) -> None:
        """Of a run that is over, in place of one like it; writes the file."""
        same = ("trial_id", "link_megabits", "target")
        self.rows = [one for one in self.rows if any(one[key] != row[key] for key in same)] + [row]
        self.write()

    def write(self) -> None:
        """The file anew."""
        figures = {
            "hosts": HOSTS,
            "compute_seconds": self.compute,
            "summary": summary(self.rows, self.compute),
            "rows": self.rows,
        }
        write(self._path, figures, targets_of(figures["summary"]))

    def has(self, trial: Trial, link: int, target: float, steps: int | None) -> bool:
        """Whether there is nothing to be run again: a row that was measured is as good as an extrapolated one."""
        return any(
            (row["trial_id"], row["link_megabits"], row["target"]) == (trial.id, link, target)
            and (row["measured"] or row["extrapolated_from_steps"] == steps)
            for row in self.rows
        )

    def trajectory(self, trial: Trial, target: float) -> dict[str, Any] | None:
        """A row of a run of this trial that went all the way, over whichever link."""
        found = [row for row in self.rows if row["measured"] and (row["trial_id"], row["target"]) == (trial.id, target)]
        return found[0] if found else None

    def extrapolated(self, like: Mapping[str, Any], steps: int | None) -> dict[str, Any] | None:
        """A row of the same workload, link, method, schedule and seed whose seconds were extrapolated from so many
        steps."""
        same = ("workload", "link_megabits", "method", "iterations", "seed", "target")
        found = [row for row in self.rows if all(row[key] == like[key] for key in same) and not row["measured"]]
        return next((row for row in found if row["extrapolated_from_steps"] == steps), None)


class Benchmark:
    """Runs what is chosen and not there yet, a link after the other within a seed."""

    def __init__(self, choice: Choice) -> None:
        self.choice, self.results = choice, Results(choice.out)
        self.until = time.monotonic() + 60 * choice.minutes
        self._head = False

    def run(self) -> None:
        """Raises TimeoutError where time ran out before everything was there."""
        for seed in self.choice.seeds:
            for link in self.choice.links:
                for workload in self.choice.workloads:
                    self._computing(workload, link)
                    for method in self.choice.methods:
                        for row in self._rows(workload, link, method, seed):
                            self.results.add(row)
                            self._say(row)
        self.results.write()

    def _computing(self, workload: str, link: int) -> None:
        name = place(workload, link)
        if name not in self.results.compute:
            trial = self.choice.trial(workload, "sgd", self.choice.seeds[0])
            steps = min(COMPUTE_STEPS, trial.schedule.iterations or COMPUTE_STEPS)
            order = self._order(trial, workload, steps=steps, alone=True)
            self.results.compute[name] = typical(self._on_hosts(order, link)[0].seconds, None)

    def _rows(self, workload: str, link: int, method: str, seed: int) -> Iterator[dict[str, Any]]:
        """Of a run, or of those that an extrapolation takes."""
        trial, target = self.choice.trial(workload, method, seed), self.choice.target_of(workload)
        about = {"workload": workload, "link_megabits": link, "method": method, "seed": seed, "trial_id": trial.id}
        about["iterations"] = trial.schedule.iterations
        if self.results.has(trial, link, target, self.choice.measured_steps):
            return
        order, every = self._order(trial, workload), trial.exchange.every
        if self.choice.measured_steps is None:
            yield about | self._measured(order, workload, link, every)
            return
        whole = self.results.trajectory(trial, target)
        if whole is None:
            whole = about | self._measured(replace(order, to_the_end=True), workload, UNLIMITED, every)
            whole["link_megabits"] = UNLIMITED
            yield whole
        if link != UNLIMITED:
            yield about | self._extrapolated(about, order, whole, every)

    def _extrapolated(
        self, about: Mapping[str, Any], order: Order, whole: Mapping[str, Any], every: int | None
    ) -> dict[str, Any]:
        """From the steps of the run that went all the way, and seconds of the first ones on the link."""
        assert self.choice.measured_steps is not None
        workload, link = about["workload"], about["link_megabits"]
        at = {key: whole[key] for key in ("reached", "steps", "final_metric")}
        like = {**about, "target": whole["target"], "seed": self.choice.steps_of_seed}
        known = self.results.extrapolated(like, self.choice.measured_steps)
        if known:
            first = known["first_seconds"][: at["steps"]]
            seconds = sum(first) + (at["steps"] - len(first)) * known["seconds_per_step"]
            ends = {
                "steps_to_target": at["steps"] if at["reached"] else None,
                "seconds_to_target": seconds if at["reached"] else None,
            }
            return {**known, **about, **at, **ends, "seconds": seconds}
        count = warm_up(every) + (every or 1) * -(-self.choice.measured_steps // (every or 1))
        found, sent = self._on_hosts(replace(order, steps=min(count, whole["steps"])), link)
        return {
            **self._figures(found, sent, at, workload, link, every),
            "measured": False,
            "extrapolated_from_steps": self.choice.measured_steps,
            "steps_of_seed": about["seed"],
            "first_seconds": found.seconds[: warm_up(every)],
        }

    def _measured(self, order: Order, workload: str, link: int, every: int | None) -> dict[str, Any]:
        found, sent = self._on_hosts(order, link)
        at = {
            "reached": found.reached is not None,
            "steps": found.reached or len(found.seconds),
            "final_metric": found.curve[-1][1] if found.curve else None,
            "curve": found.curve,
        }
        return self._figures(found, sent, at, workload, link, every) | {
            "measured": True,
            "extrapolated_from_steps": None,
        }

    def _figures(
        self, found: Steps, sent: int, at: Mapping[str, Any], workload: str, link: int, every: int | None
    ) -> dict[str, Any]:
        """A row's numbers. sent: bytes of the first host's interface, evaluations and headers included. at: how the
        whole run ended."""
        whole = at["steps"] <= len(found.seconds)
        seconds = sum(found.seconds[: at["steps"]]) if whole else totalled(found.seconds, every, at["steps"])
        phases = {phase: typical([step[phase] for step in found.phases], every) for phase in PHASES}
        return {
            "target": self.choice.target_of(workload),
            **at,
            "steps_to_target": at["steps"] if at["reached"] else None,
            "seconds_to_target": seconds if at["reached"] else None,
            "seconds": seconds,
            "seconds_per_step": typical(found.seconds, every),
            "bytes_per_step": typical(found.bytes, every),
            "phase_seconds": {"compute": self.results.compute.get(place(workload, link)), **phases},
            "interface_bytes": sent,
        }

    def _order(self, trial: Trial, workload: str, steps: int | None = None, alone: bool = False) -> Order:
        headline = headline_of(trial.flat())
        target = self.choice.target_of(workload)
        return Order(trial.config(), headline.metric, headline.higher, target, 0.0, steps, alone)

    def _on_hosts(self, order: Order, link: int) -> tuple[Steps, int]:
        """What rank 0 found, and the bytes of its interface. Raises TimeoutError where too little time is left."""
        left = self.until - time.monotonic()
        if left < SHORTEST:
            raise TimeoutError("out of time")
        rate = f"{link}mbit" if link else None
        found, sent = on_hosts(__file__, replace(order, seconds=left), HOSTS, rate, left + 1800)
        if found.cut:
            raise TimeoutError(f"cut off after {len(found.seconds)} steps, {sum(found.seconds):.0f} s of training")
        return found, sent

    def _say(self, row: Mapping[str, Any]) -> None:
        if not self._head:
            print(f"{'workload':14}{'Mbit/s':>7}  {'method':26}{'seed':>4}{'s to target':>13}", end="")
            print(f"{'steps':>7}{'final':>9}{'s/step':>9}{'kB/step':>9}{'compute':>9}", end="")
            print("".join(f"{phase:>9}" for phase in PHASES))
            self._head = True
        to_target = f"{row['seconds_to_target']:.1f}" if row["reached"] else "not reached"
        print(f"{row['workload']:14}{row['link_megabits'] or 'any':>7}  {row['method']:26}{row['seed']:>4}", end="")
        print(f"{to_target:>12}{' ' if row['measured'] else '~'}{row['steps']:>7}{row['final_metric']:>9.4f}", end="")
        print(f"{row['seconds_per_step']:>9.4f}{row['bytes_per_step'] / 1e3:>9.1f}", end="")
        numbers = row["phase_seconds"].values()
        print("".join(f"{'-' if one is None else format(one, '.4f'):>9}" for one in numbers), flush=True)


def chosen(arguments: Sequence[str]) -> Choice:
    """From a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Choice()
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=default.workloads)
    parser.add_argument("--links", nargs="+", type=int, default=default.links, help="Mbit/s; 0: not limited")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *EVERY], default=default.methods)
    parser.add_argument("--seeds", nargs="+", type=int, default=default.seeds)
    parser.add_argument("--minutes", type=float, default=default.minutes, help="begin and go on for no longer")
    parser.add_argument("--measured-steps", type=int, help="extrapolate from so many steps on each link")
    parser.add_argument("--steps-of-seed", type=int, help="whose extrapolated steps count for all seeds")
    parser.add_argument("--target", type=float, help="of the test metric; default: the workload's")
    parser.add_argument("--iterations", type=int, help="of the schedule; default: the workload's")
    parser.add_argument("--evaluate-every", type=int, help="steps; default: the workload's")
    parser.add_argument("--out", type=Path, default=default.out)
    parser.add_argument("--table", action="store_true", help="run nothing; print what the file says, in Markdown")
    given = vars(parser.parse_args(arguments))
    return Choice(workloads=given.pop("workload"), **given)


def main(arguments: Sequence[str]) -> None:
    from tests.testing.shaped_hosts import why_not

    choice = chosen(arguments)
    if choice.table:
        results = Results(choice.out)
        for goal, found in summary(results.rows, results.compute).items():
            print(f"{goal}\n\n{markdown(found)}")
        return
    if reason := why_not():
        print(f"benchmarks/time_to_target.py is left out: {reason}", file=sys.stderr)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the ends of hosts and their processes
    try:
        Benchmark(choice).run()
    except TimeoutError as error:
        print(f"{error}; {choice.out} has what was run, and the same call goes on", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--host"]:
        on_host(sys.argv[2])
    else:
        main(sys.argv[1:])
