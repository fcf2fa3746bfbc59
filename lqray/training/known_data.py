"""What is known of datasets without their files. Imports no torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.options.data import DataOptions, TextOptions
from lqray.experiment.schema import Trial
from lqray.training.corpus import about_how_many
from lqray.training.files import CorruptDataError
from lqray.training.tokenizing import vocabulary_of


@dataclass(frozen=True)
class KnownData:
    """shape: of an input, such as (channels, height, width). examples: for training; exact: whether there are always so
    many. tokens: whether inputs are int64, else float32."""

    shape: tuple[int, ...]
    classes: int
    examples: int
    exact: bool = True
    tokens: bool = False


_DATASETS = {
    "digits": KnownData((1, 8, 8), 10, 1437),
    "mnist": KnownData((1, 28, 28), 10, 60_000),
    "fashion_mnist": KnownData((1, 28, 28), 10, 60_000),
    "cifar10": KnownData((3, 32, 32), 10, 50_000),
    "cifar100": KnownData((3, 32, 32), 100, 50_000),
    "svhn": KnownData((3, 32, 32), 10, 73_257, exact=False),
}


def known_data(options: DataOptions) -> KnownData | None:
    """None for a dataset of which too little is known without its files."""
    chosen = options.model_dump()
    if options.name == "gaussian_mixture":
        return KnownData((1, 1, chosen["dimension"]), chosen["classes"], chosen["train_size"])
    if options.name == "imagenet":
        return KnownData((3, chosen["size"], chosen["size"]), 1000, 1_281_167, exact=False)
    if options.name == "linear":
        return KnownData((chosen["dimension"],), 1, chosen["train_size"])
    if isinstance(options, TextOptions):
        with suppress(OSError, CorruptDataError):  # its files, or its tokenizer's, may come with the first trial
            return _known_text(options.model_dump_json())
        return None
    return _DATASETS.get(options.name)


@lru_cache(maxsize=256)
def _known_text(config: str) -> KnownData:
    options = TextOptions.model_validate_json(config)
    return KnownData((options.context,), vocabulary_of(options), about_how_many(options), exact=False, tokens=True)


def check_batches(trial: Trial) -> None:
    """Raise UnfitTrialError for a trial whose steps want more examples than there are."""
    known = known_data(trial.data)
    wanted = trial.workers * trial.schedule.batch_size
    if known and known.exact and wanted > known.examples:
        raise UnfitTrialError(
            f"schedule.batch_size: found {trial.schedule.batch_size} for each of {trial.workers} workers, which is "
            f"{wanted:,} examples for a step; allowed: at most {known.examples:,} in all, the training set of "
            f"{trial.data.name}"
        )
