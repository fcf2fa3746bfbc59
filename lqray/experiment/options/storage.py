"""Where checkpoints and logs are kept, and how many."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from lqray.experiment.options.section import MOST_ITERATIONS, Section, Word
from lqray.experiment.store import wrong_address


def _storage_folder(folder: str | None) -> str | None:
    if folder is not None and (wrong := wrong_address(folder)):
        raise ValueError(wrong)
    return folder


class Storage(Section):
    """Where checkpoints and logs of trials are kept. Not part of a trial."""

    folder: Annotated[Word | None, AfterValidator(_storage_folder)] = None
    """A folder, on several machines one that all of them see; or s3://BUCKET/PREFIX, gs://... of an object store. A
    relative path is relative to the directory that `lqray run` is called from; ~ is the home directory, $NAME or
    ${NAME} a variable of its environment. By default LQRAY_STORAGE of that environment, else lqray-storage."""
    checkpoint_every: int = Field(default=500, ge=1, le=MOST_ITERATIONS)
    """Iterations between checkpoints; the end of a run is always one."""
    keep: int = Field(default=2, ge=1, le=MOST_ITERATIONS)
    """Checkpoints of a trial that stay, beside the best."""
