"""`lqray plot`: figures of recorded experiments, written as files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lqray.experiment.foreign import in_file_name
from lqray.experiment.store import as_argument
from lqray.reporting.figures import Kind, kinds, load_kind
from lqray.reporting.figures.recordings import FINISHED, RUNNING, NothingToDrawError, Options, Recordings
from lqray.reporting.figures.style import FORMATS, styled, write
from lqray.reporting.labels import labels_of
from lqray.reporting.planned import Recorded, planned_records
from lqray.reporting.selection import select, why_none
from lqray.store.runs import Run

ALL = "all"
_FOLDER = Path("figures")
_OWN = {
    "metrics": "--metric",
    "group_by": "--group-by",
    "target": "--target",
    "smooth": "--smooth",
    "measured": "--measured",
    "workers": "--workers",
    "baseline": "--baseline",
    "of": "--of",
}


class PlotError(ValueError):
    """Options that do not go together, or nothing to draw."""


@dataclass(frozen=True)
class Request:
    """The options of `lqray plot`; see its help. everything: also runs that the plan does not have. out: a folder, or a
    file of one of FORMATS; figures/ by default. formats: by default that of the file, or all of FORMATS; where they are
    given, the file has each of their endings in turn."""

    kind: str
    figure: Options = field(default_factory=Options)
    only: Sequence[str] = ()
    where: Sequence[str] = ()
    running: bool = False
    everything: bool = False
    formats: Sequence[str] = ()
    out: Path | None = None


@dataclass(frozen=True)
class Drawn:
    """A kind's figure. files: as written; none where it was left out, then remarks say why."""

    kind: str
    files: tuple[Path, ...]
    remarks: tuple[str, ...]


def plot(experiments: Sequence[Recorded], request: Request) -> Iterator[Drawn]:
    """Draw and write figures of experiments, together; of kind `all` what the records
    allow.

    Raises PlotError, NothingToDrawError, UnknownExperimentError, UnknownKeyError.
    """
    chosen = [load_kind(name) for name in (kinds() if request.kind == ALL else [request.kind])]
    heeded = _heeded(chosen, request)
    folder, stem, formats = _destination([one.name for one in experiments], request)
    recordings = recordings_of(experiments, request)
    drew = False
    for kind in chosen:
        recordings.remarks = list(recordings.left_out)
        with styled():
            try:
                figure = kind.draw(recordings, heeded[kind.name])
            except NothingToDrawError as error:
                if request.kind != ALL:
                    raise
                yield Drawn(kind.name, (), (str(error),))
                continue
            files = write(figure, folder / stem.format(kind=kind.name), formats)
        drew = True
        yield Drawn(kind.name, tuple(files), tuple(recordings.remarks))
    if not drew:
        raise PlotError("none of the figures can be drawn from what is recorded")


def plot_all(
    experiments: Sequence[Recorded],
    folder: Path,
    everything: bool = False,
    wanted: Sequence[str] = (ALL,),
    formats: Sequence[str] = FORMATS,
) -> list[str]:
    """Figures of some kinds, or every one that the records allow, in a folder; what to say of each, a line. For
    exports."""
    lines = []
    for kind in wanted:
        try:
            for drawn in plot(experiments, Request(kind, everything=everything, formats=formats, out=folder)):
                names = ", ".join(file.name for file in drawn.files) or "left out"
                lines.append("; ".join([f"{drawn.kind}: {names}", *drawn.remarks]))
        except (PlotError, NothingToDrawError) as error:
            lines.append(f"{'none' if kind == ALL else kind}: {error}")
    return lines


def _heeded(chosen: Sequence[Kind], request: Request) -> dict[str, Options]:
    """By kind the options that it takes; one that no chosen kind takes is an error."""
    given = {name for name in _OWN if getattr(request.figure, name) not in ((), None, 0)}
    for name in sorted(given):
        if not any(name in kind.takes for kind in chosen):
            takes = ", ".join(one for one in kinds() if name in load_kind(one).takes)
            raise PlotError(f"found {_OWN[name]} with --kind {request.kind}; allowed: with {takes}")
    if request.figure.target is not None and len(request.figure.metrics) > 1:
        raise PlotError(f"found --target with {len(request.figure.metrics)} metrics; allowed: with one --metric")
    blank = Options()
    return {
        kind.name: replace(request.figure, **{name: getattr(blank, name) for name in given - kind.takes})
        for kind in chosen
    }


def _destination(names: Sequence[str], request: Request) -> tuple[Path, str, Sequence[str]]:
    """Folder, name of the file without its ending, formats."""
    shape = request.out.suffix.removeprefix(".") if request.out else ""
    if request.out and shape in FORMATS:
        if request.kind == ALL:
            raise PlotError(f"found --kind all with --out {request.out}, one file; allowed: a folder")
        return request.out.parent, request.out.stem.replace("{", "{{").replace("}", "}}"), request.formats or (shape,)
    name = in_file_name("+".join(names)).replace("{", "{{").replace("}", "}}")
    return request.out or _FOLDER, f"{name}-{{kind}}", request.formats or FORMATS


def recordings_of(experiments: Sequence[Recorded], request: Request) -> Recordings:
    """The trials that a request is of. Raises PlotError without any, UnknownExperimentError, UnknownKeyError."""
    newest, remarks = planned_records(experiments, request.everything)
    chosen = select(newest, request.only, request.where)
    wanted = {FINISHED, RUNNING} if request.running else {FINISHED}
    usable = {one.run_id for one in chosen if one.status in wanted}
    if not usable:
        raise PlotError(_why_nothing(experiments, newest, chosen, request, remarks))
    return Recordings(
        experiments[0].uri, [one for one in chosen if one.run_id in usable], remarks, labels_of(experiments)
    )


def _why_nothing(
    experiments: Sequence[Recorded],
    newest: Sequence[Run],
    chosen: Sequence[Run],
    request: Request,
    remarks: Sequence[str],
) -> str:
    names = ", ".join(one.name for one in experiments)
    if not newest:
        return f"{names} has no trials of lqray yet; run its file: `lqray run FILE`"
    if not chosen:
        return f"no trial of {names} {why_none(newest, request.only, request.where)}"
    counts = ", ".join(f"{count} {state}" for state, count in sorted(Counter(one.state for one in chosen).items()))
    advice = ["`lqray run FILE` continues what is not finished"]
    failed = [one for one in experiments if "://" in one.uri] if any(one.status == "FAILED" for one in chosen) else []
    advice += [f"`lqray failures {as_argument(one.name, one.uri)}` says why trials failed" for one in failed]
    if any(one.status == RUNNING for one in chosen):
        advice.append("--running draws those that run")
    return f"no trial of {names} has finished: {counts}; {'; '.join([*advice, *remarks])}"
