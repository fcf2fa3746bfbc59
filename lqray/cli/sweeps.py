"""Commands that run trials: run, train."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lqray.cli import shared
from lqray.cli.endings import exit_code, leave, note, say_what_failed, say_what_is_left, say_why_it_ended
from lqray.cli.on_end import Ending, told_of_end

if TYPE_CHECKING:
    from rich.console import Console

    from lqray.experiment.grid import Experiment
    from lqray.orchestration.launch import Ran
    from lqray.orchestration.plan.plan import LauncherName, Plan, RunOptions
    from lqray.reporting.links import Link

    Modelled = tuple[tuple[Link, ...], tuple[int, ...]]
    """Links and numbers of workers."""

MOST_HOURS = 24 * 366


@click.command()
@shared.files
@click.option(
    "--launcher",
    type=click.Choice(["auto", "isolated", "warm", "inline"]),
    default="auto",
    show_default=True,
    help="isolated: on Ray, worker processes of its own for each trial. warm: on Ray, processes run one trial after "
    "the other. inline: one trial after the other on this machine, without Ray. auto: warm for trials expected under a "
    "minute, else isolated.",
)
@click.option("--only", multiple=True, metavar="PATTERN", help="Only trials of such names (shell pattern) or this id.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key of every trial, or a resource.")
@click.option("--limit", "--max-trials", "limit", type=click.IntRange(1), help="Run at most so many trials.")
@click.option(
    "--max-hours",
    type=click.FloatRange(0, MOST_HOURS, min_open=True),
    callback=shared.read_number,
    help="After so long begin no trial, and stop those that run after a checkpoint.",
)
@click.option("--rerun", is_flag=True, help="A new attempt at every trial, also at finished ones.")
@click.option("--dry-run", is_flag=True, help="Show what would run, what is done and what it would cost; run nothing.")
@click.option(
    "--link", "links", callback=shared.read_links, metavar="RATE,...", help="With --dry-run: modelled on them."
)
@click.option("--workers", callback=shared.read_workers, metavar="N,...", help="With --link: of so many hosts [2,8].")
@click.option("--max-failures", type=click.IntRange(1), help="Begin no further trial after so many failed.")
@click.option(
    "--stop-on", multiple=True, metavar="RULE", help="Stop a trial early: NaN, accuracy<0.2@1000, loss>4@1000."
)
@click.option(
    "--on-end",
    metavar="CMD",
    help="A shell command to run when the launch of each FILE has ended, however; LQRAY_STATUS and others tell it how.",
)
@click.option("--verbose", is_flag=True, help="Also show Ray's log lines.")
def run(
    files: tuple[Path, ...],
    launcher: LauncherName,
    only: tuple[str, ...],
    overrides: tuple[str, ...],
    limit: int | None,
    max_hours: float | None,
    rerun: bool,
    dry_run: bool,
    links: tuple[Link, ...],
    workers: tuple[int, ...] | None,
    max_failures: int | None,
    stop_on: tuple[str, ...],
    on_end: str | None,
    verbose: bool,
) -> None:
    """Run the trials of each FILE that are not finished yet, record them in MLflow, and print how they compare.

    Running again resumes, retries and adds what is missing: interrupted and failed trials continue from their
    checkpoints.

    Exit code: 0 when nothing is left to do, 1 when a trial failed, 2 when something has to be put right first, 3 when
    trials are left to another launch that runs them, 4 when --max-hours or resources.trial_time_limit ended some that
    the same command continues, 130 when interrupted.
    """
    began = time.monotonic()
    from lqray.experiment.choice import NothingChosenError
    from lqray.orchestration import signals
    from lqray.orchestration.queue.stop_rules import StopRuleError, parse_stop_rule
    from lqray.store.errors import StoreError
    from lqray.store.outage import hasten

    if (links and not dry_run) or (workers and not links):
        raise click.UsageError("found --link or --workers alone; allowed: --dry-run --link 10mbit [--workers 2,8]")
    modelled = (links, workers or (2, 8))
    click.get_current_context().with_resource(signals.heeded("leave"))
    hasten(signals.heard_seconds_ago)
    _say_what_runs()
    with shared.clear_errors(StopRuleError, NothingChosenError, StoreError):
        rules = tuple(parse_stop_rule(text) for text in stop_on)
        experiments = [shared.read(file, overrides) for file in files]
        only = shared.check_chosen(experiments, only)
    from lqray.orchestration.plan.plan import Budget, RunOptions

    budget = Budget(max_hours, began) if max_hours else None
    options = RunOptions(launcher, only, limit, rerun, max_failures, rules, verbose, not overrides, budget)
    codes = [
        _run_one(experiment, file, options, dry_run, modelled, on_end)
        for file, experiment in zip(files, experiments, strict=True)
    ]
    sys.exit(max(codes))


def _say_what_runs() -> None:
    """In a job, whose code may be that which was sent, or the machine's own: which it is."""
    from lqray.orchestration.code_version import code_version
    from lqray.orchestration.provenance import running_code
    from lqray.orchestration.submitted import OtherCodeError, check_code, runs_in_a_job

    if not runs_in_a_job():
        return
    shared.say(running_code())
    with shared.clear_errors(OtherCodeError):
        check_code(code_version(), Path(__file__).parents[1])


def _run_one(
    experiment: Experiment, file: Path, options: RunOptions, dry_run: bool, modelled: Modelled, on_end: str | None
) -> int:
    """Run one experiment; returns the exit code. Leaves with that of the signal when interrupted."""
    from lqray.orchestration import signals

    signals.from_here("leave")
    from lqray.experiment.errors import UnfitTrialError
    from lqray.experiment.parts import add_place
    from lqray.experiment.store import StorageError
    from lqray.orchestration.launch import check_plan, runs_elsewhere
    from lqray.orchestration.launchers.placement import PlacementError
    from lqray.orchestration.launchers.ray.cluster import ClusterError
    from lqray.orchestration.plan.data import lacking
    from lqray.orchestration.plan.plan import make_plan
    from lqray.orchestration.remote.job_checks import UnfitForJobsError, check_lasting
    from lqray.orchestration.submitted import runs_in_a_job
    from lqray.store.errors import StoreAwayError

    console = shared.console()
    known = (PlacementError, ClusterError, StoreAwayError, UnfitForJobsError, StorageError, UnfitTrialError)
    with shared.clear_errors(*known):
        if runs_in_a_job():
            check_lasting(experiment.tracking, experiment.storage, here=True)
        add_place(file.parent)
        plan = make_plan(experiment, options)
        if dry_run:
            from lqray.cli.dry_run import show_plan

            check_plan(plan, options, thorough=True)
            show_plan(console, plan)
            if modelled[0]:
                from lqray.cli.dry_links import show_links

                show_links(console, plan, *modelled)
            if not runs_elsewhere(options.launcher):
                for problem in lacking(plan.due, fetch=False):
                    shared.say(f"would be refused here now: {problem}", err=True)
            return 0
    name = shared.named(experiment.name, plan.uri, file if options.whole else None)
    ending = Ending(experiment.name, left=len(plan.due) + plan.more, report=f"{shared.program()} report {name}")
    with told_of_end(on_end, ending):
        with shared.clear_errors(*known):
            ran = carry_out(console, plan, options)
        compared, page = _compare(console, experiment, plan, ran, name)
        say_what_failed(ran, name)
        say_what_is_left(ran, name)
        opened = f"{shared.program()} ui {name}"
        shared.say(f"Compare them in the MLflow UI:  {page or opened}")
        say_why_it_ended(plan, ran)
        code = exit_code(ran, compared)
        note(ending, plan, ran, code)
    return leave(ran, code)


def carry_out(console: Console, plan: Plan, options: RunOptions) -> Ran:
    """Run what is due, and show on the console what that is and how it goes. Raises what `run_plan` raises."""
    from lqray.cli.progress import Progress
    from lqray.orchestration.doctor.local import machine
    from lqray.orchestration.launch import Presentation, run_plan
    from lqray.reporting.figures.density import draw_density
    from lqray.reporting.summary import sweep_summary

    _say_plan(console, plan.experiment.name, plan)
    with Progress(console, len(plan.due) + plan.more) as progress:
        return run_plan(plan, options, progress, Presentation(sweep_summary, draw_density, machine))


def _compare(console: Console, experiment: Experiment, plan: Plan, ran: Ran, name: str) -> tuple[bool, str | None]:
    """Print how the trials compare; returns False, and prints why, where the store cannot be read now, and the address
    of their charts where a server has them. name: of the experiment, as a command's arguments."""
    from lqray.experiment.secrets import masked
    from lqray.reporting.comparison import compare_groups
    from lqray.reporting.fitting import show_table
    from lqray.reporting.records import UnknownExperimentError, latest_attempts, read_records
    from lqray.reporting.ui_publish import page_of, publish_view
    from lqray.store.errors import StoreError

    ids = {one.named.trial.id for one in plan.trials} | {result.named.trial.id for result in ran.results}
    try:
        records = [one for one in latest_attempts(read_records(plan.uri, experiment.name)) if one.trial_id in ids]
        advice = f"To see them:  {shared.program()} report {name} --format markdown"
        show_table(console, compare_groups(records, plan.uri, histories=False), advice=advice)
        return True, page_of(plan.uri, publish_view(plan.uri, experiment.name))
    except UnknownExperimentError:
        shared.say(f"{experiment.name} was deleted from {masked(plan.uri)} while it ran: nothing to compare", err=True)
    except StoreError as error:
        shared.say(
            f"Error: the trials cannot be compared now: {error} Later:  {shared.program()} report {name}",
            err=True,
        )
        return False, None
    return True, None


def _say_plan(console: Console, name: str, plan: Plan) -> None:
    from rich.text import Text

    from lqray.experiment.foreign import rich_text
    from lqray.experiment.secrets import masked

    counts: dict[str, int] = {}
    for one in plan.trials:
        counts[one.what] = counts.get(one.what, 0) + 1
    words = {
        "run": "to run",
        "continue": "to continue",
        "retry": "to retry",
        "rerun": "to run again",
        "done": "finished before",
        "early": "stopped early before",
    }
    parts = ", ".join(f"{counts[what]} {word}" for what, word in words.items() if what in counts) or "no trials"
    parts += plan.said_of_others
    parts += f", {plan.more} to be suggested" if plan.more else ""
    limited = f"; now {len(plan.due)} of them" if plan.limit and len(plan.due) == plan.limit else ""
    said = f": {parts}{limited}, recorded in {masked(plan.uri)}"
    console.print(Text.assemble(rich_text(name, "bold"), rich_text(said)))


@click.command()
@shared.file
@click.option("--trial", "chosen", metavar="NAME_OR_ID", help="Which trial of FILE; needed unless there is only one.")
@click.option("--checkpoints", help="Folder, or s3://BUCKET/PREFIX, to write to, and to continue from.")
@click.option("--checkpoint-every", type=click.IntRange(1), default=1000, show_default=True, help="In iterations.")
@click.option("--keep", type=click.IntRange(1), default=2, show_default=True, help="Checkpoints kept, beside the best.")
@click.option("--metrics", type=click.Path(path_type=Path), help="Append every report to this file, as lines of JSON.")
@click.option("--profile", type=click.Path(path_type=Path), help="Folder for torch profiler traces of five steps.")
def train(
    file: Path,
    chosen: str | None,
    checkpoints: str | None,
    checkpoint_every: int,
    keep: int,
    metrics: Path | None,
    profile: Path | None,
) -> None:
    """Train one trial of FILE without Ray and MLflow: to debug and to profile.

    Alone, or in several processes: torchrun --nproc-per-node 2 -m lqray train FILE --trial NAME. Folders of checkpoints
    must be seen by all of them.
    """
    from lqray.experiment.errors import UnfitTrialError, UnknownTrialError
    from lqray.experiment.parts import add_place
    from lqray.experiment.store import StorageError, storage_address

    with shared.clear_errors(UnknownTrialError, StorageError):
        experiment = shared.read(file)
        named = experiment.find(chosen)
        address = storage_address(checkpoints) if checkpoints else None
        add_place(file.parent)
    from lqray.communication import NoContractionError
    from lqray.training.checkpoint import CheckpointError, Checkpoints
    from lqray.training.files import CorruptDataError, MissingDataError
    from lqray.training.nonfinite import DivergedError
    from lqray.training.standalone import LaunchVariablesError, run_standalone
    from lqray.training.storage import NoSpaceError

    folder = Checkpoints(address, checkpoint_every, keep) if address else None
    data = (MissingDataError, CorruptDataError)
    of_storage = (CheckpointError, NoSpaceError, StorageError)
    of_the_trial = (DivergedError, NoContractionError, LaunchVariablesError, UnfitTrialError)
    with shared.clear_errors(*data, *of_storage, *of_the_trial):
        run_standalone(named.trial, experiment.resources, shared.say, folder, metrics, profile)
