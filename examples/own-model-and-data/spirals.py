"""A dataset of one's own, read from a file: points of the plane on the arms of a spiral, one class an arm."""

from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, Field

from lqray.training.images import ImageClassification, Images

FOLDER = Path(__file__).parent


class OPTIONS(BaseModel):
    """What stands below `data.options`."""

    file: str = "spirals.csv"
    test_every: int = Field(default=5, ge=2)
    """Every so many-th row is for testing."""


def load(options):
    """The rows x, y, class as inputs of the shape (1, 1, 2). A function of the options and the file alone."""
    rows = torch.from_numpy(np.loadtxt(FOLDER / options.file, delimiter=",", skiprows=1, dtype=np.float32))
    points, labels = rows[:, :2].reshape(-1, 1, 1, 2), rows[:, 2].long()
    testing = torch.arange(len(rows)) % options.test_every == 0
    train, test = (Images(points[those], labels[those]) for those in (~testing, testing))
    return ImageClassification(train, test, int(labels.max()) + 1, (0.0,), (1.0,))


def data_files(options):
    """What `load` reads, so that lqray can tell runs with other data."""
    return [FOLDER / options.file]
