"""What all sections of a YAML have in common: classes, types, and the largest values there are."""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lqray.experiment.identity import canonical_json

MOST_ITERATIONS = 2**32 - 1
"""Steps, or epochs, of a run: an exchange counts iterations with 32 bits, and its rounding noise follows from them."""
SMALLEST, LARGEST = 1e-38, 1e38
"""Of numbers that float32 tensors are multiplied by: beyond them are its zero and its infinity."""
MOST_EXAMPLES = 2**31 - 1
"""In a data set, and hence in a batch: more than any that lqray reads into memory has."""
MOST_UNITS = 2**20
"""Units or channels of a layer."""
MOST_WEIGHTS = 2**34
"""Of a layer, and coordinates of synthetic data: 64 GiB in float32, as much as a large GPU has."""
MOST_VOCABULARY = 2**24
"""Tokens that there are, and rows of an embedding: a hundred times those of today's tokenizers."""
MOST_WORKERS = 2**14
"""Workers, processes and trials at a time: more than any cluster that Ray is known to serve has processes."""
MOST_SAMPLES = 10_000
"""Extra gradients at one measurement or fit; each costs a backward pass or its memory."""
MOST_OF_A_LIST = 10_000
"""Entries of a list, which every error and every record of a trial repeats."""
MOST_OF_A_WORD = 4096
"""Characters, as of a path."""
MOST_COORDINATES = 2**48
"""Of a tensor, as lqray.ops has it."""
MOST_SEED = 2**64 - 1
"""Integers of 64 bits."""
MOST_DRAWS = 100_000
"""Of a search: more trials than have ever been run to find a number."""


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(after <= before for before, after in itertools.pairwise(values)):
        raise ValueError("strictly ascending iterations")
    return values


Iterations = Annotated[
    tuple[Annotated[int, Field(ge=0, le=MOST_ITERATIONS)], ...],
    Field(strict=False, max_length=MOST_OF_A_LIST),
    AfterValidator(_ascending),
]
Word = Annotated[str, Field(min_length=1, max_length=MOST_OF_A_WORD)]
Units = Annotated[int, Field(ge=1, le=MOST_UNITS)]


class Section(BaseModel):
    """A frozen part of a trial: unknown keys forbidden, no silent conversions, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @cached_property
    def canonical_json(self) -> str:
        """The section's part of a trial's identity; see `lqray.experiment.identity`."""
        return canonical_json(self)


class Variant(Section):
    """A section whose class is chosen by the value of `selector`. `siblings`: keys of its other names."""

    selector: ClassVar[str] = "name"
    siblings: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _leave_siblings_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict) or cls.siblings.isdisjoint(values):
            return values
        own = cls.model_fields
        return {key: value for key, value in values.items() if key in own or key not in cls.siblings}
