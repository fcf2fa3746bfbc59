"""Sweeps from Python, for notebooks and scripts: `lqray.run`, `lqray.report`, `lqray.compare`.

They do what the commands of these names do. What a command says before it exits with 2 is the message of an exception;
Ctrl-C, and a notebook's interrupt, end a sweep as in a terminal, and raise KeyboardInterrupt.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    import pandas as pd

    from lqray.experiment.grid import Experiment
    from lqray.orchestration.launch import Ran
    from lqray.orchestration.plan.plan import LauncherName, Plan, RunOptions

_WIDTH = 160


@dataclass(frozen=True)
class Swept:
    """What came of `lqray.run`.

    experiment, uri: its name and store, as `lqray.report` takes them. finished: names of the trials that this run has
    finished. failed: kind and error of those that failed, by name. left: why it has not run others, by name. halted:
    why it began no more, None where it went through. trials: names of all that the file, or `only`, asks for.
    """

    experiment: str
    uri: str
    trials: tuple[str, ...]
    finished: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    halted: str | None = None

    def report(self, **options: Any) -> pd.DataFrame:
        """`lqray.report` of this experiment."""
        return report(self.experiment, uri=self.uri, **options)


def run(
    file: str | Path,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    launcher: LauncherName = "auto",
    only: str | Sequence[str] = (),
    limit: int | None = None,
    rerun: bool = False,
    max_failures: int | None = None,
    stop_on: str | Sequence[str] = (),
    verbose: bool = False,
) -> Swept:
    """Run the trials of an experiment file that are not finished yet, as `lqray run` does; progress is printed.

    overrides: values by dotted key, such as {"schedule.iterations": 100}, or texts as of `--set`. The other options are
    the command's: `lqray run --help`. A trial that fails is no exception: see `Swept.failed`.

    Raises ExperimentError for a file or an override that is not valid, ValueError for another option,
    NothingChosenError for an `only` that no trial fits, StopRuleError, PlacementError, StorageError and UnfitTrialError
    for what can never run here, ClusterError for a Ray that cannot be reached or was lost, StoreError for a store that
    cannot be used, and KeyboardInterrupt once a sweep that was interrupted has been recorded.
    """
    from lqray.cli.shared import check_chosen
    from lqray.experiment.grid import read_experiment
    from lqray.orchestration import signals
    from lqray.orchestration.plan.plan import LauncherName, RunOptions, make_plan
    from lqray.orchestration.queue.stop_rules import parse_stop_rule
    from lqray.store.outage import hasten

    _check("launcher", launcher, launcher in get_args(LauncherName), ", ".join(get_args(LauncherName)))
    for name, number in (("limit", limit), ("max_failures", max_failures)):
        _check(name, number, number is None or number >= 1, "None, or at least 1")
    rules = tuple(parse_stop_rule(text) for text in _several(stop_on))
    patterns, texts = _several(only), _texts(overrides)
    with _words_of_the_store():
        experiment = read_experiment(file, texts)
        patterns = check_chosen([experiment], patterns)
        options = RunOptions(launcher, patterns, limit, rerun, max_failures, rules, verbose, whole=not texts)
        try:
            with _safe_path(), signals.heeded("raise"):
                hasten(signals.heard_seconds_ago)
                plan = make_plan(experiment, options)
                ran = _carried_out(plan, options)
        finally:
            hasten(lambda: None)
            signals.pass_on()
    return _swept(experiment, plan, ran)


def report(
    *experiments: str | Path,
    metrics: str | Sequence[str] = (),
    group_by: str | Sequence[str] = (),
    baseline: str | None = None,
    target: float | None = None,
    last: int = 5,
    only: str | Sequence[str] = (),
    where: str | Sequence[str] | Mapping[str, Any] = (),
    everything: bool = False,
    uri: str | None = None,
    smooth: int = 0,
    tuned: str | Sequence[str] | None = None,
    tuning_seeds: int | str | Sequence[int | str] = (),
) -> pd.DataFrame:
    """Compare the runs of experiments, as `lqray report` does: a row for each group, with means, standard deviations,
    95% intervals and paired tests over seeds, and costs; `.attrs["notes"]` says what the columns mean.

    experiments: names, experiment files, or folders that `lqray export` wrote. where: values by parameter, or texts
    KEY=VALUE. everything: `--all`. uri: the store, by default as the command has it. tuned: () for every setting, also
    where the file has `search.each`. The others are the command's.
    Raises UnknownExperimentError, SeveralStoresError, UnknownKeyError, ExperimentError, StoreError, ValueError.
    """
    from lqray.cli.shared import recorded
    from lqray.reporting.frames import report_frame
    from lqray.reporting.report import ReportOptions, make_report

    _check("experiments", "none", bool(experiments), "one or more, names or files")
    _check("last", last, last >= 1, "at least 1")
    _check("smooth", smooth, smooth >= 0, "0 for no running mean, or more")
    conditions = [f"{key}={value}" for key, value in where.items()] if isinstance(where, Mapping) else _several(where)
    options = ReportOptions(
        _several(metrics),
        _several(group_by),
        baseline,
        target,
        last,
        _several(only),
        conditions,
        everything,
        smooth=smooth,
        tuned=None if tuned is None else _several(tuned),
        tuning_seeds=[str(one) for one in ([tuning_seeds] if isinstance(tuning_seeds, int | str) else tuning_seeds)],
    )
    with _words_of_the_store():
        return report_frame(make_report(recorded([str(one) for one in experiments], uri), options))


def compare(
    *runs: str, experiment: str | Path | None = None, everything: bool = False, uri: str | None = None
) -> pd.DataFrame:
    """In what runs differ, as `lqray compare` says it: a row for each thing, a column for each run, all as text.

    runs: two or more ids, or names or ids of trials. experiment: theirs, a name or a file, where trials of several have
    these names. everything: also what is equal. uri: the store. Raises UnknownRunError, UnknownExperimentError,
    StoreError, ValueError.
    """
    from lqray.cli.shared import absolute, recorded
    from lqray.reporting.differences import differences
    from lqray.reporting.finding import find_run
    from lqray.reporting.frames import differences_frame

    _check("runs", len(runs), len(runs) >= 2, "two or more")
    with _words_of_the_store():
        given = recorded([str(experiment)], uri)[0] if experiment else None
        store = given.uri if given else absolute(uri)
        return differences_frame(differences([find_run(store, run, given) for run in runs]), everything)


def _carried_out(plan: Plan, options: RunOptions) -> Ran:
    """Run, print, and raise what ended it before its time. Progress is plain lines, in a notebook, too."""
    from lqray.cli.sweeps import carry_out
    from lqray.experiment.foreign import plain_console
    from lqray.orchestration import signals
    from lqray.orchestration.launchers.ray.cluster import ClusterError

    console = plain_console(width=_WIDTH, force_terminal=False, force_jupyter=False)
    ran = carry_out(console, plan, options)
    left = len(plan.due) - len(ran.results)
    if ran.interrupted or signals.heard():
        raise signals.Interrupted(
            f"trials that were running are recorded as KILLED; run the same again to continue ({left} were not started)"
        )
    if ran.lost:
        raise ClusterError(f"{ran.lost}: {left} trials were not started or not finished")
    return ran


def _swept(experiment: Experiment, plan: Plan, ran: Ran) -> Swept:
    from lqray.cli.endings import what_is_left
    from lqray.cli.shared import named

    failed = {result.named.name: result.failure for result in ran.results}
    return Swept(
        experiment.name,
        plan.uri,
        tuple(one.named.name for one in plan.trials),
        tuple(result.named.name for result in ran.results if result.status == "FINISHED"),
        {name: f"{failure.kind}: {failure.error}" for name, failure in failed.items() if failure},
        what_is_left(ran, named(experiment.name, plan.uri)),
        ran.halted,
    )


def _several(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _texts(overrides: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """As of `--set`."""
    if not isinstance(overrides, Mapping):
        return _several(overrides)
    return tuple(f"{key}={_in_yaml(key, value)}" for key, value in overrides.items())


def _in_yaml(key: str, value: Any) -> str:
    import yaml

    plain = getattr(value, "tolist", lambda: value)()  # a number or an array of numpy's
    try:
        text: str = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=float("inf"))
    except yaml.YAMLError:
        kind = type(value).__name__
        raise ValueError(
            f"override {key}: found a {kind}; allowed: numbers, texts, booleans, None, lists of them"
        ) from None
    return text.removesuffix("...\n").strip()


def _check(name: str, found: object, right: bool, allowed: str) -> None:
    if not right:
        raise ValueError(f"{name}: found {found!r}; allowed: {allowed}")


@contextmanager
def _safe_path() -> Iterator[None]:
    """Processes that are started meanwhile do not look for modules in the working folder first (`lqray.cli.main`)."""
    name, before = "PYTHONSAFEPATH", os.environ.get("PYTHONSAFEPATH")
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


@contextmanager
def _words_of_the_store() -> Iterator[None]:
    """What a store's packages raise is a StoreError, in the words of the command line, and without passwords."""
    from lqray.cli.shared import is_of_the_store, said_of_the_store
    from lqray.store.errors import StoreError

    try:
        yield
    except Exception as error:
        if not is_of_the_store(error):
            raise
        raise StoreError(said_of_the_store(error)) from None
