"""Options of datasets: one class per name, as in the other sections.

`root`, `download` and `loading_processes` cannot change a result and enter no trial's id: the same experiment on
another machine, with its files elsewhere, is the same experiment.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from lqray.experiment.options.own import OwnPart
from lqray.experiment.options.section import (
    LARGEST,
    MOST_EXAMPLES,
    MOST_SEED,
    MOST_UNITS,
    MOST_WEIGHTS,
    SMALLEST,
    Variant,
    Word,
)


class DataOptions(Variant):
    """A dataset: a module of training/data."""

    name: str


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


class GaussianMixtureOptions(DataOptions):
    """Synthetic: a class is a normal distribution around a centre of its own."""

    classes: Literal[2, 5, 10] = 2
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
        examples = max(self.train_size, self.test_size)
        if examples * self.dimension > MOST_WEIGHTS:
            raise ValueError(
                f"at most {MOST_WEIGHTS:,} coordinates, which are held in memory; found {examples} examples of "
                f"{self.dimension}"
            )
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
    "mnist": DigitImagesOptions,
    "svhn": SvhnOptions,
}
