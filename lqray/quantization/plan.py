"""Which compressor encodes which parameter, where several do: a plan of compressors by parameter."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from lqray.experiment.options.budget import Budget, bits_of
from lqray.experiment.options.quantizer import AdaptiveLevelsOptions, CompressorOptions, by_bits
from lqray.quantization.compressor import Array, Compressor
from lqray.quantization.payload import Payload
from lqray.quantization.place import Place
from lqray.quantization.regrouping import Regrouping, alike

_OF = ": "
_NO_METRIC = re.compile(r"[^\w./-]", re.ASCII)


class CompressorPlan(Compressor):
    """Compressors of one method: one for each number of bits that its options have by parameter (`bits: {...}`), and,
    where levels are not shared (`levels: layer`), one for each parameter that is large enough.

    Each has parameters, statistics and levels of its own. `of_parameter` is the one that encodes; a payload knows by
    its `owner` which decodes it, so that the plan itself decodes all. Without a parameter, that of `default` encodes.
    """

    def __init__(self, options: CompressorOptions, make: Callable[[CompressorOptions], Compressor]) -> None:
        """make: the compressor of options with one number of bits and shared levels."""
        super().__init__(options)
        self._bits: float | Budget | None = getattr(options, "bits", None)
        self._make, self._each = make, by_bits(options)
        self._of_bits = {bits: make(one) for bits, one in self._each.items()}
        self._of_layer: dict[str, Compressor] = {}
        self._bound: dict[str, int] = {}
        self._number()
        first = self._all[0]
        self.unbiased, self.deterministic, self.linear = first.unbiased, first.deterministic, first.linear
        self.layers, self.schedule = first.layers, first.schedule
        self.samples, self.fresh_samples = first.samples, first.fresh_samples

    @property
    def compressors(self) -> dict[str, Compressor]:
        """All of them, by the names by which telemetry and states call them, in the order of their numbers."""
        several = isinstance(self._bits, tuple)
        shared = {_name(bits) if several else "shared": one for bits, one in self._of_bits.items()}
        return shared | {f"layer/{name}": one for name, one in self._of_layer.items()}

    def _number(self) -> None:
        self._all = [*self._of_bits.values(), *self._of_layer.values()]
        for number, one in enumerate(self._all):
            one.number = number

    @property
    def _default(self) -> Compressor:
        """Of parameters that no pattern names."""
        return self._of_bits[self._bits[-1][1] if isinstance(self._bits, tuple) else bits_of(self._bits, "")]

    def bind_to(self, sizes: Mapping[str, int]) -> None:
        """See `Compressor.bind_to`. Other parameters than before begin with new levels."""
        chosen = self._all[0].options
        if not has_levels_by_layer(chosen) or self._bound == sizes:
            return
        self._bound = dict(sizes)
        self._of_layer = {
            name: self._make(self._each[bits_of(self._bits, name)])
            for name, size in sizes.items()
            if size // chosen.bucket_size >= chosen.levels_from
        }
        self._number()

    @property
    def unit(self) -> int:
        """See `Compressor.unit`: bits do not change it."""
        return self._all[0].unit

    def of_parameter(self, name: str) -> Compressor:
        """See `Compressor.of_parameter`."""
        return self._of_layer.get(name) or self._of_bits[bits_of(self._bits, name)]

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> Payload:
        """See `Compressor.encode`, and the class."""
        return self.encode_at(tensor, Place(), seed=seed, offset=offset)

    def encode_at(self, tensor: Tensor, place: Place, *, seed: int, offset: int) -> Payload:
        """See `Compressor.encode_at`, and the class."""
        one = self._default
        return replace(one.encode_at(tensor, place, seed=seed, offset=offset), owner=one.number)

    def decode(self, payload: Payload) -> Tensor:
        """See `Compressor.decode`."""
        return self._all[payload.owner].decode(payload)

    def decode_mean(self, payloads: Tensor, like: Payload) -> Tensor:
        """See `Compressor.decode_mean`."""
        return self._all[like.owner].decode_mean(payloads, like)

    def mean_payload(self, payloads: Tensor, like: Payload) -> Payload:
        """See `Compressor.mean_payload`."""
        return replace(self._all[like.owner].mean_payload(payloads, like), owner=like.owner)

    def rescaled(self, payload: Payload, corrected: Tensor, decoded: Tensor) -> Payload:
        """See `Compressor.rescaled`."""
        return replace(self._all[payload.owner].rescaled(payload, corrected, decoded), owner=payload.owner)

    @property
    def can_be_scaled(self) -> bool:
        """See `Compressor.can_be_scaled`."""
        return self._all[0].can_be_scaled

    def why_no_contraction(self) -> str | None:
        """See `Compressor.why_no_contraction`: of the first that has a reason."""
        return next((why for one in self._all if (why := one.why_no_contraction())), None)

    @property
    def bounded(self) -> bool:
        """See `Compressor.bounded`: whether all are."""
        return all(one.bounded for one in self._all)

    @property
    def adapts(self) -> bool:
        """Whether any does."""
        return any(one.adapts for one in self._all)

    @property
    def fitted(self) -> bool:
        """Whether any that adapts has been fitted, or none adapts. One whose parameters have no gradients never is."""
        return not self.adapts or any(one.fitted for one in self._all if one.adapts)

    def observe(self, tensor: Tensor, worker: int = 0) -> None:
        """See `Compressor.observe`, and the class."""
        self._default.observe(tensor, worker)

    def statistics_table(self) -> Array:
        """See `Compressor.statistics_table`; the first column says which compressor has observed a row."""
        tables = [one.statistics_table() for one in self._all]
        return np.concatenate([np.insert(table, 0, number, axis=1) for number, table in enumerate(tables)])

    def update_to(self, table: Array) -> None:
        """See `Compressor.update_to`: each to its own rows."""
        for number, one in enumerate(self._all):
            one.update_to(table[table[:, 0] == number, 1:])
        self.updates += 1

    def parameters(self) -> Array:
        """See `Compressor.parameters`: those of all, one after the other."""
        return np.concatenate([one.parameters() for one in self._all])

    def adopt(self, parameters: Array) -> None:
        """See `Compressor.adopt`."""
        ends = list(itertools.accumulate(one.parameters().size for one in self._all))
        for one, part in zip(self._all, np.split(parameters, ends[:-1]), strict=True):
            one.adopt(part)
        self.updates += 1

    def fingerprint(self) -> bytes:
        """See `Compressor.fingerprint`."""
        return b"".join(one.fingerprint() for one in self._all)

    def tensors_on(self, device: torch.device) -> Sequence[Tensor]:
        """See `Compressor.tensors_on`."""
        return [tensor for one in self._all for tensor in one.tensors_on(device)]

    def telemetry(self) -> dict[str, float]:
        """Of every compressor, as quantizer/NAME/level/3; what no metric may be called by, in a name, is `_`."""
        return {
            key.replace("quantizer/", f"quantizer/{_NO_METRIC.sub('_', name)}/", 1): value
            for name, one in self.compressors.items()
            for key, value in one.telemetry().items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """See `Compressor.state_dict`: of every compressor, as `NAME: KEY`."""
        return {
            f"{name}{_OF}{key}": value
            for name, one in self.compressors.items()
            for key, value in one.state_dict().items()
        } | {"updates": torch.tensor(self.updates)}

    def regrouped(self, states: Sequence[Mapping[str, Tensor]], regrouping: Regrouping) -> dict[str, Tensor]:
        """See `Compressor.regrouped`: of every compressor its own."""
        apart = [_parts_of(state) for state in states]
        found = dict(super().regrouped([parts.pop("", {}) for parts in apart], regrouping))
        for name in alike([list(parts) for parts in apart], "the compressors"):
            one = self.compressors[name].regrouped([parts[name] for parts in apart], regrouping)
            found |= {f"{name}{_OF}{key}": value for key, value in one.items()}
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises ValueError for the state of other compressors."""
        parts = _parts_of(state)
        counted, own = parts.pop("", {}), self.compressors
        wanted = {name for name, one in own.items() if one.state_dict()}
        if "updates" not in counted or set(parts) - set(own) or wanted - set(parts):
            differ = ", ".join(sorted(set(parts) ^ set(own)))
            raise ValueError(
                f"the state is of the compressors {', '.join(parts)}; allowed: {', '.join(own)}. They differ in "
                f"{differ}: give it to an exchange of the same options, attached to the same model"
            )
        for name, one in own.items():
            one.load_state_dict(parts.get(name, {}))
        self.updates = int(counted["updates"])


def _parts_of(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Of every compressor by its name; of the plan itself as ""."""
    parts: dict[str, dict[str, Tensor]] = {}
    for full, value in state.items():
        name, _, key = full.rpartition(_OF)
        parts.setdefault(name, {})[key] = value
    return parts


def _name(bits: float) -> str:
    return f"{int(bits) if bits == int(bits) else bits}_bits"


def has_levels_by_layer(options: object) -> TypeGuard[AdaptiveLevelsOptions]:
    """Whether a compressor of these options has levels of its own for every large parameter."""
    return isinstance(options, AdaptiveLevelsOptions) and options.levels == "layer"
