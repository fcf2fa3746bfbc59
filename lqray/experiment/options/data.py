"""Options of datasets: one class per name, as in the other sections.

`root`, `download` and `loading_processes` cannot change a result and enter no trial's id: the same experiment on
another machine, with its files elsewhere, is the same experiment. Of `text` alone `root` does: it says which text.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from lqray.experiment.options.own import OwnPart
from lqray.experiment.options.section import (
    LARGEST,
    MOST_EXAMPLES,
    MOST_SEED,
    MOST_UNITS,
    MOST_VOCABULARY,
    MOST_WEIGHTS,
    SMALLEST,
    Variant,
    Word,
)


class DataOptions(Variant):
    """A dataset: a module of training/data."""

    name: str
    """Which dataset."""


class FileOptions(DataOptions):
    """A dataset that is read from files."""

    root: Word | None = Field(default=None, json_schema_extra={"identity": False})
    """Folder of the files, ~ for the home directory, $NAME or ${NAME} for a variable of the environment of the process
    that loads them; null: its variable LQRAY_DATA, or else ~/data."""


class DownloadedOptions(FileOptions):
    """A dataset that torchvision can download."""

    download: bool = Field(default=False, json_schema_extra={"identity": False})
    """Download missing files into `root`; of several processes one does, the others wait."""


class DigitImagesOptions(DownloadedOptions):
    """MNIST: 60,000 and 10,000 28x28 grey images of digits."""

    augmentation: Literal["none", "standard"] = "none"
    """standard: a random 28x28 crop after padding with 4 black pixels; digits are not flipped."""


class FashionImagesOptions(DownloadedOptions):
    """Fashion-MNIST: 60,000 and 10,000 28x28 grey images of clothes."""

    augmentation: Literal["none", "standard"] = "none"
    """standard: a random 28x28 crop after padding with 4 black pixels, and a horizontal flip of every other image."""


class CifarOptions(DownloadedOptions):
    """CIFAR-10 or CIFAR-100: 50,000 and 10,000 32x32 colour images."""

    augmentation: Literal["none", "standard", "strong"] = "standard"
    """standard: a random 32x32 crop after padding with 4 black pixels, and a horizontal flip with probability 1/2
    (He et al. 2016). strong: besides, a random affine map (rotation up to 15 degrees, shift up to 10%, scale 0.9 to
    1.1) and random brightness, contrast and saturation (0.8 to 1.2)."""


class SvhnOptions(DownloadedOptions):
    """Street View House Numbers: 32x32 colour images of digits, 73,257 (and 531,131 extra) and 26,032."""

    extra: bool = True
    """Train on the extra set, too."""
    augmentation: Literal["none", "standard"] = "none"
    """standard: a random 32x32 crop after padding with 4 black pixels; digits are not flipped."""


class ImagenetOptions(FileOptions):
    """ImageNet, or any images in folders train/<class>/ and val/<class>/ below `root`."""

    size: int = Field(default=224, ge=8, le=8192)
    """Side of the inputs, pixels; for evaluation the shorter side is first resized to 256/224 of it."""
    loading_processes: int = Field(default=4, ge=0, le=1024, json_schema_extra={"identity": False})
    """Processes that read images ahead for each training process; 0: it reads them itself."""


def _fits_memory(examples: int, dimension: int) -> None:
    if examples * dimension > MOST_WEIGHTS:
        raise ValueError(
            f"at most {MOST_WEIGHTS:,} coordinates, which are held in memory; found {examples} examples of {dimension}"
        )


class GaussianMixtureOptions(DataOptions):
    """Synthetic: a class is a normal distribution around a centre of its own."""

    classes: Literal[2, 5, 10] = 2
    """How many there are, of equally many examples."""
    dimension: int = Field(default=100, ge=1, le=MOST_UNITS)
    """Of the inputs."""
    centre_scale: float = Field(default=1.0, ge=SMALLEST, le=LARGEST)
    """C: standard deviation of the coordinates of the centres."""
    noise_scale: float = Field(default=1.0, ge=SMALLEST, le=LARGEST)
    """D: standard deviation of the coordinates of examples around their centre."""
    train_size: int = Field(default=1000, ge=10, le=MOST_EXAMPLES)
    """Training examples."""
    test_size: int = Field(default=1000, ge=10, le=MOST_EXAMPLES)
    """Test examples."""
    data_seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Of centres and examples, apart from the trial's seed: trials share their data."""

    @model_validator(mode="after")
    def _fits(self) -> GaussianMixtureOptions:
        _fits_memory(max(self.train_size, self.test_size), self.dimension)
        return self


def _tokenizer(value: str) -> str:
    if value not in ("bytes", "gpt2") and not value.endswith(".json"):
        raise ValueError("bytes, gpt2, or the path of a file tokenizer.json of the tokenizers package")
    return value


class TextOptions(DataOptions):
    """Language modelling: windows of a text, or of tokens made before. Which text is part of a trial's id, as it is
    written: with a variable in `root` one file of experiments serves several machines."""

    root: Word | None = None
    """A file, or a folder, of text or of tokens; ~ for the home directory, $NAME or ${NAME} for a variable of the
    environment of the process that loads them; null: the standard library of the Python that trains."""
    tokenizer: Annotated[Word, AfterValidator(_tokenizer)] = "bytes"
    """What makes tokens of text: bytes, each byte a token (vocabulary 256); gpt2 (50,257); or the path of a file
    tokenizer.json, with variables as in `root`. The last two take the package tokenizers."""
    vocabulary: int | None = Field(default=None, ge=2, le=MOST_VOCABULARY)
    """Tokens that there are, where `root` is files of tokens whose tokenizer is not at hand; null: the tokenizer's."""
    context: int = Field(default=256, ge=1, le=MOST_UNITS)
    """Tokens of an example; windows do not overlap."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Share of the tokens, the last ones, that are the test set; of files of tokens called train and val, val is."""
    evaluation_examples: int | None = Field(default=None, ge=1, le=MOST_EXAMPLES)
    """Evaluate at most so many windows of a split, evenly spread over it; null: all."""


class LinearOptions(DataOptions):
    """Synthetic linear regression: normal features, and targets with normal noise."""

    dimension: int = Field(default=100, ge=1, le=MOST_UNITS)
    """Of the features."""
    noise_scale: float = Field(default=0.1, ge=0, le=LARGEST)
    """Standard deviation of the targets around their expectation, which has one of about 1."""
    condition: float = Field(default=1.0, ge=1, le=LARGEST)
    """Condition number of the features' covariance: eigenvalues from 1 down to 1/condition, at equal ratios."""
    train_size: int = Field(default=1000, ge=10, le=MOST_EXAMPLES)
    """Training examples."""
    test_size: int = Field(default=1000, ge=10, le=MOST_EXAMPLES)
    """Test examples."""
    data_seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Of weights and examples, apart from the trial's seed: trials share their data."""

    @model_validator(mode="after")
    def _fits(self) -> LinearOptions:
        _fits_memory(max(self.train_size, self.test_size), self.dimension)
        return self


class OwnDataOptions(OwnPart, DataOptions):
    """A dataset of a user's own: `load(options) -> Dataset`."""

    kind: ClassVar[str] = "datasets"


DATA: dict[str, type[DataOptions]] = {
    "cifar10": CifarOptions,
    "cifar100": CifarOptions,
    "fashion_mnist": FashionImagesOptions,
    "gaussian_mixture": GaussianMixtureOptions,
    "imagenet": ImagenetOptions,
    "linear": LinearOptions,
    "mnist": DigitImagesOptions,
    "svhn": SvhnOptions,
    "text": TextOptions,
}
