"""Commands that keep gradients: capture."""

from __future__ import annotations

from pathlib import Path

import click

from lqray.cli import shared


@click.command()
@shared.file
@click.option("--trial", "chosen", metavar="NAME_OR_ID", help="Which trial of FILE; needed unless there is only one.")
@click.option(
    "--at",
    multiple=True,
    type=click.IntRange(1),
    required=True,
    help="After so many steps; may be given several times.",
)
@click.option("--samples", type=click.IntRange(1), default=8, show_default=True, help="Gradients of each worker.")
@click.option(
    "--output", default="gradients.pt", show_default=True, metavar="FILE", help="To write to; or s3://BUCKET/KEY."
)
def capture(file: Path, chosen: str | None, at: tuple[int, ...], samples: int, output: str) -> None:
    """Train one trial of FILE up to an iteration, and keep gradients of all its workers at the parameters of then.

    They are of minibatches that are not trained on yet. What is written is a file that torch.load reads: what
    compressors make of real gradients can be measured on it.
    """
    from lqray.experiment.errors import UnfitTrialError, UnknownTrialError
    from lqray.experiment.parts import add_place

    with shared.clear_errors(UnknownTrialError):
        experiment = shared.read(file)
        named = experiment.find(chosen)
        add_place(file.parent)
    from lqray.communication import NoContractionError
    from lqray.experiment.store import StorageError
    from lqray.training.capture import capture, write_captures
    from lqray.training.files import CorruptDataError, MissingDataError
    from lqray.training.nonfinite import DivergedError
    from lqray.training.standalone import line

    of_the_trial = (DivergedError, NoContractionError, UnfitTrialError, MissingDataError, CorruptDataError)
    with shared.clear_errors(*of_the_trial, StorageError):
        found = capture(named.trial, experiment.resources, at, samples, lambda report: shared.say(line(report)))
        write_captures(output, named.trial, named.name, found)
    coordinates, iterations = found[0].flat().shape[2], " and ".join(str(one.iteration) for one in found)
    kept = f"{samples} of each of {named.trial.workers} workers, after {iterations} steps"
    shared.say(f"{output}: gradients of {coordinates:,} coordinates, {kept}")
