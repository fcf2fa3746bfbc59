"""The draws of `search:`, known before anything runs."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

from lqray.experiment.options.search import Domain, Search

_DIGITS = 6


def draws(search: Search) -> Iterator[dict[str, Any]]:
    """Dotted keys to values, one mapping for each draw. A grid's last key varies fastest; random numbers are rounded to
    six significant digits, for the sake of names."""
    if search.adaptive:
        return
    if search.sampler == "grid" or not search.space:
        for values in itertools.product(*(domain.choice or () for domain in search.space.values())):
            yield dict(zip(search.space, values, strict=True))
        return
    for number in range(search.samples):
        yield {
            key: _draw(domain, random.Random(f"{search.seed} {number} {key}")) for key, domain in search.space.items()
        }


def number_of_draws(search: Search) -> int:
    """How many mappings `draws` gives, without making them."""
    if search.adaptive:
        return 0
    if search.sampler == "grid" or not search.space:
        return math.prod(len(domain.choice or ()) for domain in search.space.values())
    return search.samples


def corner(search: Search, high: bool) -> dict[str, Any]:
    """The first, or lowest, of each key's values, or the last, or highest."""
    ends = {}
    for key, domain in search.space.items():
        values = domain.choice or domain.integer or domain.uniform or domain.log_uniform or ()
        ends[key] = values[-1 if high else 0]
    return ends


def rounded(domain: Domain, value: Any) -> Any:
    """A drawn value as trials have it."""
    bounds = domain.uniform or domain.log_uniform
    return _rounded(float(value), *bounds) if bounds else value


def _draw(domain: Domain, generator: random.Random) -> Any:
    if domain.choice is not None:
        return generator.choice(domain.choice)
    if domain.integer is not None:
        return generator.randint(*domain.integer)
    if domain.log_uniform is not None:
        low, high = domain.log_uniform
        return _rounded(math.exp(generator.uniform(math.log(low), math.log(high))), low, high)
    assert domain.uniform is not None
    low, high = domain.uniform
    return _rounded(generator.uniform(low, high), low, high)


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.{_DIGITS}g}"), low), high)
