"""How methods look, in every table and figure the same: name, order, colour, marker, line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """label: the paper's name. colour: of Okabe and Ito's palette, told apart by the colour-blind, or a shade of one;
    dashes and marker tell those of one colour apart, also in print without colours."""

    label: str
    colour: str
    dashes: str = "-"
    marker: str = "o"


_LOOKS = {
    "sgd": Look("SGD", "#999999", ":", "x"),
    "full_precision": Look("SuperSGD", "#000000", "-", "s"),
    "fp16": Look("fp16", "#666666", "--", "P"),
    "bf16": Look("bf16", "#666666", "-.", "X"),
    "powersgd": Look("PowerSGD", "#8B5A2B", "-", "h"),
    "qsgd": Look("QSGD", "#56B4E9", "--", "v"),
    "qsgd_inf": Look("QSGDinf", "#56B4E9", "-", "^"),
    "nuqsgd": Look("NUQSGD", "#F0E442", "-", "D"),
    "terngrad": Look("TernGrad", "#CC79A7", "-", "*"),
    "alq": Look("ALQ", "#D55E00", "-", "o"),
    "alq_n": Look("ALQ-N", "#D55E00", "--", "o"),
    "alq_inf": Look("ALQinf", "#D55E00", "-.", "o"),
    "alqg": Look("ALQG", "#A0522D", "-", "p"),
    "alqg_n": Look("ALQG-N", "#A0522D", "--", "p"),
    "amq": Look("AMQ", "#009E73", "-", "<"),
    "amq_n": Look("AMQ-N", "#009E73", "--", "<"),
    "amq_inf": Look("AMQinf", "#009E73", "-.", "<"),
    "optimal": Look("optimal", "#0072B2", "-", ">"),
}
_OTHERS = ("#E69F00", "#332288", "#882255", "#44AA99")


def look(method: str) -> Look:
    """Of a method; one that the table does not know has a colour that depends on its name alone."""
    known = _LOOKS.get(method)
    if known:
        return known
    digest = hashlib.sha256(method.encode()).digest()
    return Look(method, _OTHERS[digest[0] % len(_OTHERS)], ("-", "--", "-.", ":")[digest[1] % 4], "d")


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods without repetition, in the order of legends and tables: baselines first, unknown ones last by name."""
    known = list(_LOOKS)
    return sorted(set(methods), key=lambda name: (known.index(name) if name in _LOOKS else len(known), name))
