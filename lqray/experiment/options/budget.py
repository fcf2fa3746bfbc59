"""A number of bits for every parameter: one for all, or by patterns of their names.

In a file `bits: {"layer4.*": 2, "fc.*": 8, default: 3}`. Of the patterns that a name fits the first in the order of the
file counts. The order is part of what the mapping says, so that it is held, and enters a trial's id, as pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainSerializer, ValidationError, WrapValidator
from pydantic_core import InitErrorDetails

from lqray.experiment.options.section import MOST_OF_A_WORD

Budget = tuple[tuple[str, float], ...]
"""Patterns of names and the numbers of their parameters; the last one is DEFAULT."""
DEFAULT = "default"
_MOST_PATTERNS = 100


def _validated(value: Any, number: Any) -> Any:
    """`number`: of pydantic, what one number has to be."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in value):
        pairs = [tuple(pair) for pair in value]
    else:
        return number(value)
    patterns = [pattern for pattern, _ in pairs]
    if not all(isinstance(pattern, str) and 0 < len(pattern) <= MOST_OF_A_WORD for pattern in patterns):
        raise ValueError(f"patterns of names, words of up to {MOST_OF_A_WORD} characters, to numbers")
    if len(set(patterns)) < len(patterns):
        raise ValueError("each pattern once")
    if len(pairs) > _MOST_PATTERNS:
        raise ValueError(f"at most {_MOST_PATTERNS} patterns")
    if DEFAULT not in patterns:
        raise ValueError(f"a number, or patterns of names with numbers and, for all others, `{DEFAULT}: NUMBER`")
    pairs.sort(key=lambda pair: pair[0] == DEFAULT)
    return tuple((pattern, _at(pattern, each, number)) for pattern, each in pairs)


def _at(pattern: str, value: Any, number: Any) -> Any:
    try:
        if value is not None:
            return number(value)
        raise ValueError("a number")
    except ValidationError as error:
        told: list[InitErrorDetails] = [
            {"type": one["type"], "loc": (pattern, *one["loc"]), "input": one["input"], "ctx": one.get("ctx", {})}
            for one in error.errors(include_url=False)
        ]
    raise ValidationError.from_exception_data("bits", told)


if TYPE_CHECKING:
    WholeBits = int | Budget
    RealBits = float | Budget
    OwnBits = float | Budget | None
else:
    _AS_THEY_ARE = PlainSerializer(lambda value: value, return_type=Any)
    WholeBits = Annotated[int, Field(ge=1, le=8), WrapValidator(_validated), _AS_THEY_ARE]
    """1 to 8, or a mapping from patterns of parameters' names to such numbers, with a `default`."""
    RealBits = Annotated[float, Field(ge=1, le=8), WrapValidator(_validated), _AS_THEY_ARE]
    """As `WholeBits`, between whole numbers, too."""
    OwnBits = Annotated[Annotated[float, Field(gt=0, le=64)] | None, WrapValidator(_validated), _AS_THEY_ARE]
    """Of a method of a user's own, which says itself what it takes."""


def one_number(bits: float | Budget) -> float:
    """Bits that are one number, as those of `by_bits` are. Raises TypeError for others."""
    if isinstance(bits, tuple):
        raise TypeError(f"bits by parameter, {budget_text(bits)}, where one number is wanted")
    return bits


def whole_number(bits: float | Budget) -> int:
    """As `one_number`, of a method whose bits are whole."""
    return int(one_number(bits))


def bits_of(bits: Any, name: str) -> Any:
    """Of a parameter; what is no budget is that of all, and 0 stands for none."""
    if not isinstance(bits, tuple):
        return bits or 0
    return next(number for pattern, number in bits if pattern == DEFAULT or fnmatchcase(name, pattern))


def budget_text(bits: float | Budget) -> str:
    """As messages and descriptions have it: `layer4.*: 2, default: 3`."""
    if isinstance(bits, tuple):
        return ", ".join(f"{pattern}: {number:g}" for pattern, number in bits)
    return f"{bits:g}"


def check_patterns(bits: Any, names: Iterable[str]) -> None:
    """Raise ValueError for a pattern that no parameter has, of those with these names: it is likely misspelt. So for
    one whose parameters all belong to patterns before it."""
    if not isinstance(bits, tuple):
        return
    left = list(names)
    known = tuple(left)
    for pattern, _ in bits[:-1]:
        rest = [name for name in left if not fnmatchcase(name, pattern)]
        if len(rest) == len(left) and any(fnmatchcase(name, pattern) for name in known):
            raise ValueError(
                f"quantizer.bits: every parameter that fits {pattern!r} fits a pattern before it, and the first one "
                "counts; allowed: patterns that have an effect. Write narrow ones before wide ones"
            )
        if len(rest) == len(left):
            raise no_such_parameter("quantizer.bits", pattern, known, DEFAULT)
        left = rest


def no_such_parameter(key: str, pattern: str, names: Sequence[str], others: str) -> ValueError:
    """What is raised for a pattern that none of these names fits. others: what else may stand there."""
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return ValueError(
        f"{key}: no parameter is called {pattern!r}; allowed: {others}, or a pattern of names, which here are {shown}"
    )


def with_pairs(key: str, value: Any) -> Any:
    """A value of a dotted key of a trial, in which a mapping that is one choice, of `quantizer.bits`, is a list of
    pairs: mappings merge, and what merges has no order."""
    if not isinstance(value, Mapping):
        return value
    if key == "quantizer.bits":
        return [[pattern, number] for pattern, number in value.items()]
    return {name: with_pairs(f"{key}.{name}", item) for name, item in value.items()}
