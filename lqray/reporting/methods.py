"""How methods look, in every table and figure the same: order, colour, marker, line. Their names are those of
experiment files, or what a file's `labels` say (`lqray.reporting.labels`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Look:
    """colour: of Okabe and Ito's or Tol's palettes; methods commonly drawn together are told
    apart by the colour-blind; dashes and marker tell those of one colour apart, also in print without colours."""

    colour: str
    dashes: str = "-"
    marker: str = "o"


_LOOKS = {
    "sgd": Look("#B5B5B5", ":", "x"),
    "full_precision": Look("#000000", "-", "s"),
    "fp16": Look("#666666", "--", "P"),
    "bf16": Look("#666666", "-.", "X"),
    "powersgd": Look("#8B5A2B", "-", "h"),
    "post_local_sgd": Look("#8B5A2B", "--", "h"),
    "topk": Look("#6A3D9A", "-", "H"),
    "random_k": Look("#6A3D9A", "--", "H"),
    "signsgd": Look("#6A3D9A", "-.", "H"),
    "int8": Look("#8B5A2B", "--", "p"),
    "mxfp8": Look("#8B5A2B", "-.", "p"),
    "mxfp4": Look("#8B5A2B", ":", "p"),
    "eden": Look("#CC3377", "-", "8"),
    "drive": Look("#CC3377", "--", "8"),
    "allocated": Look("#CC3377", "-.", "D"),
    "qsgd": Look("#56B4E9", "--", "v"),
    "qsgd_inf": Look("#56B4E9", "-", "^"),
    "nuqsgd": Look("#332288", "-", "D"),
    "terngrad": Look("#882255", "-", "*"),
    "alq": Look("#D55E00", "-", "o"),
    "alq_n": Look("#D55E00", "--", "o"),
    "alq_inf": Look("#D55E00", "-.", "o"),
    "alqg": Look("#E69F00", "-", "p"),
    "alqg_n": Look("#E69F00", "--", "p"),
    "amq": Look("#009E73", "-", "<"),
    "amq_n": Look("#009E73", "--", "<"),
    "amq_inf": Look("#009E73", "-.", "<"),
    "optimal": Look("#0072B2", "-", ">"),
    "optimal_inf": Look("#0072B2", "-.", ">"),
    "dither": Look("#CC79A7", "--", "8"),
    "slopes": Look("#CC79A7", "-", "8"),
}
_DASHES = ("-", "--", "-.", ":")
_OTHERS = ("#44AA99", "#AA4499", "#999933", "#6A3D9A")
_NUMBERED = ("#44AA99", "#AA4499", "#999933", "#CC6677", "#117733", "#88CCEE", "#661100", "#DDCC77")
_MARKERS = "os^Dv*ph"


def look(method: str) -> Look:
    """Of a method; one that the table does not know has a colour that depends on its name alone."""
    known = _LOOKS.get(method)
    if known:
        return known
    digest = hashlib.sha256(method.encode()).digest()
    return Look(_OTHERS[digest[0] % len(_OTHERS)], _DASHES[digest[1] % 4], "d")


def numbered(number: int) -> Look:
    """Of the `number`-th of groups that are not of one method each; after eight, colours repeat with other dashes."""
    at, turn = number % len(_NUMBERED), number // len(_NUMBERED)
    return Look(_NUMBERED[at], _DASHES[turn % len(_DASHES)], _MARKERS[at])


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods without repetition, in the order of legends and tables: baselines first, unknown ones last by name."""
    known = list(_LOOKS)
    return sorted(set(methods), key=lambda name: (known.index(name) if name in _LOOKS else len(known), name))


def shade(own: Look, index: int, count: int) -> Look:
    """Of the `count` groups of one method that a figure tells apart, the one at `index`: the last has the method's own
    look, those before it are lighter, with other dashes and markers."""
    if index == count - 1:
        return own
    lighter = 0.65 * (count - 1 - index) / max(count - 1, 3)
    channels = [int(own.colour[at : at + 2], 16) for at in (1, 3, 5)]
    colour = "#" + "".join(f"{round(one + (255 - one) * lighter):02X}" for one in channels)
    dashes = [one for one in _DASHES if one != own.dashes]
    markers = [one for one in _MARKERS if one != own.marker]
    turn = count - 2 - index
    return replace(own, colour=colour, dashes=dashes[turn % len(dashes)], marker=markers[turn % len(markers)])
