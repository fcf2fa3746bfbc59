"""Commands that compare what was recorded: report, compare, export, plot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lqray.cli import shared

if TYPE_CHECKING:
    from lqray.reporting.export import Raw
    from lqray.reporting.links import Link
    from lqray.reporting.report import Format


def _known_kind(_context: click.Context, _parameter: click.Parameter, kind: str) -> str:
    from lqray.experiment.errors import did_you_mean
    from lqray.reporting.figures import kinds

    known = (*kinds(), "all")
    if kind not in known:
        hint = did_you_mean(kind, known)
        raise click.BadParameter(f"found {kind!r}; {f'{hint} ' if hint else ''}allowed: {', '.join(known)}")
    return kind


def _kinds(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    kinds = dict.fromkeys(one.strip() for one in text.split(","))
    return () if list(kinds) == ["none"] else tuple(_known_kind(context, parameter, one) for one in kinds)


def _known_formats(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    from lqray.reporting.figures.style import FORMATS

    if text is None:
        return ()
    found = tuple(dict.fromkeys(one.strip() for one in text.split(",")))
    if not set(found) <= set(FORMATS):
        raise click.BadParameter(f"found {text!r}; allowed: {', '.join(FORMATS)}, several with commas")
    return found


def _tuned(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...] | None:
    """None: whatever the files search; nothing: none of it."""
    found = tuple(one.strip() for text in texts for one in text.split(","))
    return () if found == ("none",) else found or None


def _seeds(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in text.split(",")) if text else ()


def _columns(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    found = tuple(one.strip() for one in text.split(","))
    if not all(found):
        raise click.BadParameter(f"found {text!r}; allowed: columns with a comma between them, such as method,final")
    return found


@click.command()
@shared.experiments
@click.option(
    "--format",
    "shape",
    type=click.Choice(["terminal", "markdown", "csv", "json", "latex"]),
    default="terminal",
    show_default=True,
    help="json and csv carry run ids and unrounded numbers, latex is a booktabs table.",
)
@click.option("--metric", "metrics", multiple=True, help="Final metric to compare [default: the headline].")
@click.option("--group-by", multiple=True, metavar="KEY", help="Parameter, or trial [default: what varies but seeds].")
@click.option(
    "--columns",
    callback=_columns,
    metavar="COLUMN,...",
    help="Only these, in this order: parameters, and runs, final, interval, best, last, difference, mb_sent, ...",
)
@click.option("--baseline", metavar="METHOD", help="Method to compare with [default: bf16, fp16 or full_precision].")
@click.option("--target", type=float, help="Steps, seconds and bytes until the first metric reached this value.")
@click.option(
    "--smooth", type=click.IntRange(2), metavar="N", help="With --target: its running mean over N evaluations."
)
@click.option(
    "--last", type=click.IntRange(1), default=5, show_default=True, help="Evaluations in the mean at the end."
)
@click.option(
    "--link",
    "links",
    callback=shared.read_links,
    metavar="RATE,...",
    help="Model steps on such links: 10mbit,1gbit, or with a latency 10mbit:20ms.",
)
@click.option(
    "--workers", callback=shared.read_workers, metavar="N,...", help="With --link: of so many hosts [default: 2,8,64]."
)
@click.option(
    "--tuned",
    multiple=True,
    callback=_tuned,
    metavar="KEY,...",
    help="Of each row the best setting of these alone; none: all [default: what the file's search.each searches].",
)
@click.option("--tuning-seeds", default="", callback=_seeds, metavar="N,...", help="Choose it by these, show others.")
@shared.only
@shared.where
@shared.everything
@shared.uri
def report(
    experiments: tuple[str, ...],
    shape: Format,
    metrics: tuple[str, ...],
    group_by: tuple[str, ...],
    columns: tuple[str, ...],
    baseline: str | None,
    target: float | None,
    smooth: int | None,
    last: int,
    links: tuple[Link, ...],
    workers: tuple[int, ...] | None,
    tuned: tuple[str, ...] | None,
    tuning_seeds: tuple[str, ...],
    only: tuple[str, ...],
    where: tuple[str, ...],
    everything: bool,
    uri: str,
) -> None:
    """Compare the runs of EXPERIMENTs, names or files: means, intervals and tests over seeds, and costs.

    Failed and missing trials are counted. A file says itself where its runs are recorded.
    """
    from lqray.reporting.planned import SeveralStoresError
    from lqray.reporting.records import UnknownExperimentError
    from lqray.reporting.report import ReportOptions, make_report, show, written
    from lqray.reporting.selection import UnknownKeyError
    from lqray.reporting.targets import TargetError

    if smooth and target is None:
        raise click.UsageError("found --smooth without --target; allowed: both, such as --smooth 5 --target 0.9")
    if workers and not links:
        raise click.UsageError("found --workers without --link; allowed: both, such as --link 100mbit --workers 2,8")
    hosts = workers or (2, 8, 64)
    options = ReportOptions(
        metrics, group_by, baseline, target, last, only, where, everything, links, hosts, smooth or 0
    )
    options = replace(options, tuned=tuned, tuning_seeds=tuning_seeds, columns=columns)
    with shared.clear_errors(UnknownExperimentError, SeveralStoresError, UnknownKeyError, TargetError):
        made = make_report(shared.recorded(experiments, uri), options)
    if shape == "terminal":
        show(shared.console(), made)
        return
    click.echo(written(made, shape), nl=False)
    if shape in ("csv", "latex"):
        for line in made.remarks:
            shared.say(line, err=True)


@click.command()
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True)
@click.option("--experiment", help="Their experiment, a name or a file, where trials of several have these names.")
@click.option(
    "--format",
    "shape",
    type=click.Choice(["terminal", "markdown", "json"]),
    default="terminal",
    show_default=True,
    help="json has every value whole.",
)
@click.option("--all", "everything", is_flag=True, help="Also what is equal.")
@shared.uri
def compare(runs: tuple[str, ...], experiment: str | None, shape: str, everything: bool, uri: str) -> None:
    """Show in what RUNs differ: configuration, code, result. A run is given by its id, or by its trial's name or id."""
    from lqray.reporting.differences import differences, in_json, in_markdown, shown
    from lqray.reporting.finding import find_run
    from lqray.reporting.records import UnknownExperimentError
    from lqray.store.runs import UnknownRunError

    if len(runs) < 2:
        raise click.UsageError("found one run; allowed: two or more")
    with shared.clear_errors(UnknownRunError, UnknownExperimentError):
        given = shared.recorded([experiment], uri)[0] if experiment else None
        store = given.uri if given else shared.absolute(uri)
        found = differences([find_run(store, run, given) for run in runs])
    if shape == "terminal":
        console = shared.console()
        console.print(shown(found, everything, console.width), highlight=False)
    else:
        click.echo((in_json if shape == "json" else in_markdown)(found, everything), nl=False)


@click.command()
@click.argument("experiment")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--raw",
    type=click.Choice(["parquet", "csv", "none"]),
    default="parquet",
    show_default=True,
    help="All points of metrics; none: not them, nor artifacts.",
)
@click.option(
    "--keep", multiple=True, metavar="PATTERN", help="Of metrics only such ones and what tables need; may be repeated."
)
@click.option("--hypothesis", metavar="TEXT", help="What the runs were to show [default: the file's first comment].")
@click.option("--metric", "metrics", multiple=True, help="Of the tables [default: the headline].")
@click.option("--group-by", multiple=True, metavar="KEY", help="As of report.")
@click.option("--baseline", metavar="METHOD", help="As of report.")
@click.option("--target", type=float, help="As of report.")
@click.option("--tuned", multiple=True, callback=_tuned, metavar="KEY,...", help="As of report.")
@click.option("--tuning-seeds", default="", callback=_seeds, metavar="N,...", help="As of report.")
@click.option("--figures", default="all", show_default=True, callback=_kinds, metavar="KIND,...", help="Or none.")
@click.option(
    "--format", "formats", default="png,svg,pdf", show_default=True, callback=_known_formats, help="Of the figures."
)
@shared.everything
@shared.uri
def export(
    experiment: str,
    folder: Path,
    raw: Raw,
    keep: tuple[str, ...],
    hypothesis: str | None,
    metrics: tuple[str, ...],
    group_by: tuple[str, ...],
    baseline: str | None,
    target: float | None,
    tuned: tuple[str, ...] | None,
    tuning_seeds: tuple[str, ...],
    figures: tuple[str, ...],
    formats: tuple[str, ...],
    everything: bool,
    uri: str,
) -> None:
    """Write EXPERIMENT, a name, a file or an exported folder, to FOLDER: a record that makes its own tables again.

    Tables, figures, file, hypothesis, commands, code, machines, seeds, p-values, metrics, and how to reproduce them.
    """
    from lqray.reporting.export import ExportError, ExportOptions
    from lqray.reporting.export import export as export_to
    from lqray.reporting.plot import plot_all
    from lqray.reporting.records import UnknownExperimentError
    from lqray.reporting.report import ReportOptions
    from lqray.reporting.selection import UnknownKeyError
    from lqray.reporting.targets import TargetError

    options = ReportOptions(
        metrics, group_by, baseline, target, everything=everything, tuned=tuned, tuning_seeds=tuning_seeds
    )
    with shared.clear_errors(UnknownExperimentError, ExportError, UnknownKeyError, TargetError):
        (recorded,) = shared.recorded([experiment], uri)

        def draw(there: Path) -> list[str]:
            return plot_all([recorded], there, everything, figures, formats)

        wanted = ExportOptions(options, raw, keep, hypothesis)
        for file in export_to(recorded, folder, wanted, draw if figures else None):
            shared.say(file)


@click.command()
@click.argument("experiments", metavar="EXPERIMENT...", nargs=-1, required=True)
@click.option("--kind", required=True, callback=_known_kind, help="Which figure, or all that the records allow.")
@click.option("--metric", "metrics", multiple=True, help="Default: the headline. Repeat it for panels.")
@click.option("--group-by", multiple=True, metavar="KEY", help="A line for trials of equal KEY; default: what varies.")
@shared.only
@shared.where
@click.option("--target", type=float, help="With bytes_to_accuracy, links, profile: of the metric.")
@click.option(
    "--measured", metavar="FILE[:WORKLOAD]", help="With links: seconds measured on links, JSON; rows of a workload."
)
@click.option("--workers", callback=shared.read_workers, metavar="N,...", help="With links: panels [default: 2,8,64].")
@click.option("--of", type=click.Choice(["bytes", "seconds", "steps"]), help="With profile: cost [default: bytes].")
@click.option("--baseline", metavar="METHOD", help="With profile: whose value, but for 1%, is the target without one.")
@click.option("--smooth", type=click.IntRange(2), default=None, metavar="N", help="Running mean over N points.")
@click.option("--running", is_flag=True, help="Also trials that still run, as thin lines.")
@shared.everything
@click.option("--width", type=click.Choice(["single", "double"]), default="single", show_default=True, help="Columns.")
@click.option("--format", "formats", callback=_known_formats, help="Default: that of --out, or png,svg,pdf.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder, or a file; default: figures/EXPERIMENT-KIND.*")
@shared.uri
def plot(
    experiments: tuple[str, ...],
    kind: str,
    metrics: tuple[str, ...],
    group_by: tuple[str, ...],
    only: tuple[str, ...],
    where: tuple[str, ...],
    target: float | None,
    measured: str | None,
    workers: tuple[int, ...] | None,
    of: Literal["bytes", "seconds", "steps"] | None,
    baseline: str | None,
    smooth: int | None,
    running: bool,
    everything: bool,
    width: Literal["single", "double"],
    formats: tuple[str, ...],
    out: Path | None,
    uri: str,
) -> None:
    """Draw the recorded runs of each EXPERIMENT, a name or a file: mean over seeds and its 95% interval.

    Kinds: bits, bucket_size, bytes_to_accuracy, curves, density, levels, links, loss_to_bytes, profile,
    throughput, variance; all.
    """
    from lqray.reporting.figures.recordings import NothingToDrawError, Options
    from lqray.reporting.measured_links import MeasuredFileError, read_measured
    from lqray.reporting.planned import SeveralStoresError
    from lqray.reporting.plot import PlotError, Request
    from lqray.reporting.plot import plot as draw
    from lqray.reporting.records import UnknownExperimentError
    from lqray.reporting.selection import UnknownKeyError
    from lqray.reporting.targets import TargetError

    known = (UnknownExperimentError, SeveralStoresError, UnknownKeyError, NothingToDrawError, PlotError)
    with shared.clear_errors(*known, MeasuredFileError, TargetError):
        points = read_measured(measured) if measured else ()
        options = Options(metrics, group_by, target, smooth or 0, width, points, workers or (), baseline, of)
        request = Request(kind, options, only, where, running, everything, formats, out)
        for drawn in draw(shared.recorded(experiments, uri), request):
            shared.say(" ".join(str(file) for file in drawn.files) or f"{drawn.kind} is left out:")
            for remark in drawn.remarks:
                shared.say(f"  {remark}")
