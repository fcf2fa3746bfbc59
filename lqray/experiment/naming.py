"""Names of trials: made of what varies in their experiment, short enough for a table, safe as a file name."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from lqray.experiment.layout import Layout
from lqray.experiment.schema import Trial, flatten

_MAX_LENGTH = 80
_VALUE_ALONE = ("quantizer.method", "model.name", "data.name", "optimizer.name", "exchange.reduction")


class Namer:
    """Names the trials of one experiment. `axes` are the dotted keys that vary, in the order of the file."""

    def __init__(self, layout: Layout) -> None:
        base = flatten(layout.base)
        seen: dict[str, list[Any]] = {}
        for block in layout.blocks:
            settings = [*((key, value) for key, values in block.matrix.items() for value in values)]
            settings += [(key, value) for entry in block.include for key, value in entry.values.items()]
            for key, value in settings:
                for leaf, item in flatten({key: value}).items():
                    seen.setdefault(leaf, []).append(item)
        for key, values in seen.items():
            everywhere = all(any(name == key or key.startswith(f"{name}.") for name in b.matrix) for b in layout.blocks)
            if not everywhere:
                values.append(base.get(key))
        self.axes = tuple(key for key, values in seen.items() if any(repr(v) != repr(values[0]) for v in values))
        self._labels = {key: _label(key, self.axes) for key in self.axes}

    def name(self, trial: Trial) -> str:
        """Name of one trial of this experiment; axes that mean nothing to it (bits of full_precision) are left out."""
        flat = trial.flat()
        parts = [f"{self._labels[key]}{_text(flat[key])}" for key in self.axes if key in flat]
        name = re.sub(r"[^A-Za-z0-9_.,+-]", "_", "-".join(parts)) or str(flat["quantizer.method"])
        if len(name) > _MAX_LENGTH:
            name = f"{name[: _MAX_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return name


def _label(key: str, axes: tuple[str, ...]) -> str:
    """The shortest ending of a dotted key that no other axis shares; nothing for names of methods, models and data."""
    if key in _VALUE_ALONE:
        return ""
    parts = key.split(".")
    for length in range(1, len(parts) + 1):
        ending = ".".join(parts[-length:])
        if sum(other == ending or other.endswith(f".{ending}") for other in axes) == 1:
            return ending
    return key


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)
