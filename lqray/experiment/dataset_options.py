"""Options of datasets: one class per name, as in `options`.

`root`, `download` and `loading_processes` cannot change a result and enter no trial's id: the same experiment on
another machine, with its files elsewhere, is the same experiment.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lqray.experiment.options import Variant


class DataOptions(Variant):
    """A dataset: a module of training/data."""

    name: str


class FileOptions(DataOptions):
    """A dataset that is read from files."""

    root: str | None = Field(default=None, min_length=1, json_schema_extra={"identity": False})
    """Folder of the files, `~` for the home directory; null: the environment variable LQRAY_DATA of the process that
    loads them, or else ~/data."""


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


DATA: dict[str, type[DataOptions]] = {
    "cifar10": CifarOptions,
    "cifar100": CifarOptions,
    "fashion_mnist": FashionImagesOptions,
    "mnist": DigitImagesOptions,
}
