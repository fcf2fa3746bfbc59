"""A quantizer: a method, its levels, and what it has seen of the gradients."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lqray import ops
from lqray.experiment import names
from lqray.experiment.errors import did_you_mean
from lqray.experiment.feedback import adapts, why_no_contraction, widest_gap
from lqray.experiment.options import quantizer as options
from lqray.experiment.part_options import Chosen, chosen_part
from lqray.experiment.parts import OWN, call, checked, is_own, load
from lqray.quantization import codec
from lqray.quantization.codec import Coding, LevelPayload
from lqray.quantization.compressor import Compressor
from lqray.quantization.fitting import Statistics
from lqray.quantization.levels import Levels, as_float32
from lqray.quantization.method import Method, load_method
from lqray.quantization.payload import Payload
from lqray.quantization.place import Place
from lqray.quantization.plan import CompressorPlan, has_levels_by_layer
from lqray.quantization.regrouping import Regrouping
from lqray.quantization.schedule import UpdateSchedule

_SEEN = "statistics/"  # before a worker's number, in a state

Bits = float | Mapping[str, float]
"""One number, or one for each pattern of parameters' names and for all others (`lqray.experiment.options.budget`)."""


class Quantizer(Compressor):
    """Encodes gradients with levels that may adapt to them.

    `observe` gathers statistics, `update_levels` fits the levels to them and forgets them. Everything that decides the
    next step is in `state_dict()`. Quantizers of all ranks must have equal levels; `lqray.communication` sees to it.
    """

    def __init__(self, method: Method, chosen: options.FixedLevelsOptions | options.TernaryOptions) -> None:
        """Codes have as many bits as the levels that there are need, whatever the options' number of bits."""
        super().__init__(chosen)
        self.method = method
        self.options = chosen
        self._levels: Levels = method.initial_levels(chosen)
        self._wire_levels = torch.from_numpy(as_float32(self._levels))
        self.coding = Coding(
            bits=(self._levels.size - 1).bit_length(),
            bucket_size=chosen.bucket_size,
            norm=method.norm,
            rotate=chosen.rotation == "hadamard",
            raw_tail=chosen.tail == "full_precision",
            clip=chosen.clip if isinstance(chosen, options.TernaryOptions) else None,
        )
        self.unbiased = self.coding.clip is None
        adaptive = chosen if isinstance(chosen, options.AdaptiveLevelsOptions) else None
        self.schedule = UpdateSchedule(adaptive.update_at, adaptive.update_every) if adaptive else UpdateSchedule()
        self.samples = adaptive.samples if adaptive else 0
        self.fresh_samples = adaptive is not None and adaptive.sampling == "fresh"
        self.expected_variance = math.nan
        """Psi of the levels under the distribution that they were last fitted to; NaN before."""
        self._copies: dict[torch.device, Tensor] = {}
        self._observed: dict[int, Statistics] = {}

    @staticmethod
    def create(method: str, bits: Bits | None = None, bucket_size: int | None = None, **others: Any) -> Compressor:
        """The compressor of a method, by its name; `others` are the method's options (`lqray.experiment.options`). A
        method without a number of bits, or of buckets, to choose leaves them out, as in YAML.

        Raises ValueError for an unknown method, one that sends no payloads, or options that it does not have.
        """
        return create(method, bits, bucket_size, **others)

    @property
    def unit(self) -> int:
        """Whole buckets, and whole groups of 32."""
        return math.lcm(self.coding.bucket_size, 32)

    @property
    def levels(self) -> Tensor:
        """float32 (L,) on the CPU: strictly increasing from -1 to 1."""
        return self._wire_levels

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> LevelPayload:
        """Stochastically rounded codes of a tensor of any shape; E[decode(encode(x))] = x over seeds.

        seed: unsigned 64-bit, different for every worker. offset: unsigned 64-bit, different for every tensor and step.
        """
        ops.check_memory("encode", tensor=tensor)
        return codec.encode(tensor, self.levels_on(tensor.device), self._encoding, seed=seed, offset=offset)

    @property
    def _encoding(self) -> Coding:
        """Until levels are fitted to full buckets, what they lose least of is a short one under its own norm."""
        return replace(self.coding, norm="l2") if self.coding.norm == "rms" and not self.fitted else self.coding

    def encode_at(self, tensor: Tensor, place: Place, *, seed: int, offset: int) -> LevelPayload:
        """`encode`; where `place` says so, with noise that is correlated over workers, each of whom stays unbiased."""
        if not place.correlated or place.workers == 1:
            return self.encode(tensor, seed=seed, offset=offset)
        ops.check_memory("encode", tensor=tensor)
        levels = self.levels_on(tensor.device)
        return codec.encode_correlated(tensor, levels, self._encoding, place, seed=seed, offset=offset)

    def template(self, n: int, offset: int) -> LevelPayload:
        """What `encode` makes of a float32 tensor (n,) that is not rotated, but for its bytes."""
        bits, size = self.coding.bits, self.coding.bucket_size
        empty = torch.empty(0, dtype=torch.uint8)
        return LevelPayload(empty, n, torch.float32, offset, bits, size, n % size if self.coding.raw_tail else 0)

    def decode(self, payload: Payload) -> Tensor:
        """The (n,) tensor that a payload stands for, in the dtype of the tensor encoded: float16 and bfloat16 ones
        stochastically rounded, finite ones to finite numbers (`lqray.quantization.codec.cast`). Raises ValueError for a
        payload of wrong length or of another quantizer's bits or buckets."""
        return codec.decode(self._own(payload), self.levels_on(payload.buffer.device))

    def decode_mean(self, payloads: Tensor, like: Payload) -> Tensor:
        """Mean of W decoded payloads, rows of (W, nbytes), in their order; `like` is one of them: (n,). The mean is
        taken in float32 and cast once; dtype and errors as of `decode`."""
        like.check(payloads)
        return codec.decode_sum(payloads, self._own(like), self.levels_on(payloads.device), 1.0 / len(payloads))

    def rescaled(self, payload: Payload, corrected: Tensor, decoded: Tensor) -> LevelPayload:
        """See `LevelPayload.rescaled`."""
        return self._own(payload).rescaled(corrected, decoded)

    def why_no_contraction(self) -> str | None:
        """By the levels that the method starts with; see `lqray.experiment.feedback`."""
        levels = self.method.initial_levels(self.options).tolist()
        return why_no_contraction(self.options, self.method.norm, levels)

    @property
    def bounded(self) -> bool:
        """Of linf norms, while no gap between levels is 1; a rotation does not keep the largest magnitude."""
        return self.coding.norm == "linf" and not self.coding.rotate and widest_gap(self.levels.tolist()) < 1

    @property
    def adapts(self) -> bool:
        """Whether levels are ever fitted, and can move."""
        return adapts(self.options)

    @property
    def fitted(self) -> bool:
        """Whether levels have been fitted to anything."""
        return not math.isnan(self.expected_variance)

    def _own(self, payload: Payload) -> LevelPayload:
        if not isinstance(payload, LevelPayload):
            raise ValueError(f"the payload holds no codes of levels; allowed: one that {self.name} has made")
        found = payload.bits, payload.bucket_size, payload.rotation is not None
        own = self.coding.bits, self.coding.bucket_size, self.coding.rotate
        if found != own:
            raise ValueError(
                f"the payload is of {_coding(*found)}; allowed: {_coding(*own)}, which is this quantizer's"
            )
        return payload

    def bias(self, tensor: Tensor) -> float:
        """||E[decode(encode(x))] - x|| / ||x||: 0 unless the method clips, or x is 0."""
        if self.coding.clip is None:
            return 0.0
        flat = codec.flattened("bias", tensor)
        exact, clipped = flat.to(torch.float64), codec.clip(flat, self.coding).to(torch.float64)
        size = float(exact.norm())
        return float((clipped - exact).norm()) / size if size else 0.0

    def observe(self, tensor: Tensor, worker: int = 0) -> None:
        """Add a gradient of any shape to what the next `update_levels` fits to. Its buckets start at its beginning.

        worker: which of those that share this process; what they saw is kept apart until the update, so that it does
        not matter how many share one."""
        fit = self.method.fit
        if fit is None:
            return
        coordinates, _ = codec.prepared(codec.flattened("observe", tensor), self.coding, 0)
        seen = fit.observe(coordinates, self.coding.norm, self.options)
        before = [self._observed[worker]] if worker in self._observed else []
        self._observed[worker] = fit.keep(fit.statistics.merge([*before, seen]), self.options)

    @property
    def statistics(self) -> Statistics:
        """What the next update fits to, of what was observed since the last one. Raises TypeError for a method whose
        levels never change."""
        if self.method.fit is None:
            raise TypeError("levels that never change need no statistics")
        return self.method.fit.statistics.from_table(self.statistics_table())  # type: ignore[no-any-return]

    def statistics_table(self) -> np.ndarray:
        """What was observed as rows (K, 4) float64, worker after worker, the form in which ranks exchange it."""
        if self.method.fit is None:
            return super().statistics_table()
        parts = [self._observed[worker].table() for worker in sorted(self._observed)]
        return np.concatenate([self.method.fit.statistics.empty().table(), *parts])

    def update_levels(self, statistics: Statistics | None = None) -> bool:
        """Fit the levels to `statistics`, by default to what was observed here, and forget the latter.

        Returns whether the levels changed. They stay when there is nothing to fit to (no bucket of positive norm and
        deviation) and are never replaced by worse ones.
        """
        if self.method.fit is None:
            return False
        kept = self.method.fit.keep(self.statistics if statistics is None else statistics, self.options)
        self._observed.clear()
        distribution = self.method.fit.distribution(kept, self.options)
        before = self.parameters()[:-1]
        if distribution is not None:
            self._fit_to(distribution)
        self.updates += 1
        return not np.array_equal(before, self.parameters()[:-1])

    def _fit_to(self, distribution: Any) -> None:
        """Set the levels and their expected variance."""
        assert self.method.fit is not None
        self.set_levels(self.method.fit.levels(distribution, self._levels, self.options))
        self.expected_variance = float(distribution.expected_variance(self._levels))

    def update_to(self, table: np.ndarray) -> None:
        """See `Compressor.update_to`."""
        if self.method.fit is not None:
            self.update_levels(self.method.fit.statistics.from_table(table))

    def parameters(self) -> np.ndarray:
        """The levels and their expected variance where they were fitted: (L + 1,) float64."""
        return np.append(self._levels, self.expected_variance)

    def adopt(self, parameters: np.ndarray) -> None:
        """As `update_levels`, of parameters that another rank has fitted. Raises ValueError unless the levels are valid
        in float32."""
        self._observed.clear()
        self.set_levels(parameters[:-1].copy())
        self.expected_variance = float(parameters[-1])
        self.updates += 1

    def fingerprint(self) -> bytes:
        """The levels as they are used on the wire."""
        return bytes(self.levels.numpy().tobytes())

    def tensors_on(self, device: torch.device) -> list[Tensor]:
        """The levels."""
        return [self.levels_on(device)]

    def telemetry(self) -> dict[str, float]:
        """Every level, what they were fitted to, and the ratio of neighbouring ones where that says all."""
        known = {"expected_variance": self.expected_variance, "multiplier": self.multiplier}
        metrics = {f"quantizer/{name}": value for name, value in known.items() if value is not None}
        metrics = {name: value for name, value in metrics.items() if not math.isnan(value)}
        return metrics | {f"quantizer/level/{j}": level for j, level in enumerate(self.levels.tolist())}

    def set_levels(self, levels: Levels) -> None:
        """Replace the levels: float64 (L,), as solved on another rank. Raises ValueError unless valid in float32."""
        self._wire_levels = torch.from_numpy(as_float32(levels))
        self._copies.clear()
        self._levels = levels

    @property
    def exact_levels(self) -> Levels:
        """The levels in float64, as solved; the wire uses them rounded to float32."""
        return self._levels

    @property
    def multiplier(self) -> float | None:
        """Ratio of neighbouring levels, of a method that adapts only that; None for others."""
        return float(self._levels[-2]) if self.method.multiplier and self._levels.size > 2 else None

    def state_dict(self) -> dict[str, Tensor]:
        """Levels (which hold the multiplier) and statistics, float64, and the number of updates made, int64; loading
        them gives the same next step, bit for bit."""
        state = {
            "levels": torch.from_numpy(self._levels.copy()),
            "updates": torch.tensor(self.updates),
            "expected_variance": torch.tensor(self.expected_variance, dtype=torch.float64),
        }
        if self.method.fit is not None:
            for worker, seen in sorted(self._observed.items()):
                state[f"{_SEEN}{worker}"] = torch.from_numpy(seen.table())
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises ValueError for levels of another number."""
        levels = state["levels"].cpu().numpy().copy()
        if levels.shape != self._levels.shape:
            raise ValueError(f"the state has {levels.size} levels; allowed: {self._levels.size}, those of its bits")
        self.set_levels(levels)
        self.updates = int(state["updates"])
        self.expected_variance = float(state["expected_variance"])
        if self.method.fit is not None:
            tables = {key.partition("/")[2]: value for key, value in state.items() if key.startswith(_SEEN)}
            self._observed = {
                int(worker): self.method.fit.statistics.from_table(table.cpu().numpy().copy())
                for worker, table in tables.items()
            }

    def regrouped(self, states: Sequence[Mapping[str, Tensor]], regrouping: Regrouping) -> dict[str, Tensor]:
        """See `Compressor.regrouped`: statistics are of workers."""
        seen = [{key: value for key, value in state.items() if key.startswith(_SEEN)} for state in states]
        rest = [{key: value for key, value in state.items() if not key.startswith(_SEEN)} for state in states]
        return super().regrouped(rest, regrouping) | regrouping.numbered(seen, _SEEN)

    def levels_on(self, device: torch.device) -> Tensor:
        """`levels` on a device, copied once: a copy to a GPU makes the host wait."""
        if device not in self._copies:
            self._copies[device] = self._wire_levels.to(device)
        return self._copies[device]


def create(method: str, bits: Bits | None = None, bucket_size: int | None = None, **others: Any) -> Compressor:
    """See `Quantizer.create`."""
    common = {"bits": bits, "bucket_size": bucket_size}
    given = {key: value for key, value in common.items() if value is not None}
    if is_own("methods", method):
        return compressor_of(options.OwnMethodOptions.model_validate({"method": method, **given, "options": others}))
    if method not in names.methods():
        hint = did_you_mean(method, names.methods())
        raise ValueError(
            f"unknown method {method!r}; allowed: {', '.join(names.methods())}, or one of your own, written {OWN}"
            + (f"; {hint}" if hint else "")
        )
    chosen = options.QUANTIZER.get(method, options.FixedLevelsOptions)
    own = {key: value for key, value in given.items() if key in chosen.model_fields}
    return compressor_of(chosen.model_validate({"method": method, **own, **others}))


def compressor_of(chosen: options.QuantizerOptions) -> Compressor:
    """The compressor that options name, or the plan of those that they name. Raises ValueError for a method that sends
    no payloads, PartError for one of a user's own that is no compressor."""
    if not isinstance(chosen, options.CompressorOptions):
        return _compressor_of(chosen)
    if isinstance(getattr(chosen, "bits", None), tuple):
        return CompressorPlan(chosen, _compressor_of)
    one = _compressor_of(chosen)
    return CompressorPlan(chosen, _compressor_of) if has_levels_by_layer(one.options) else one


def _compressor_of(chosen: options.QuantizerOptions) -> Compressor:
    """Of one number of bits."""
    if own := chosen_part("quantizer", chosen):
        return _own_compressor(own)
    method = load_method(chosen.method)
    if method is None:
        raise ValueError(f"{chosen.method} sends no codes, so there is nothing to quantize")
    if isinstance(method, Method):
        assert isinstance(chosen, options.FixedLevelsOptions | options.TernaryOptions)
        return Quantizer(method, chosen)
    return method(chosen)


def _own_compressor(own: Chosen) -> Compressor:
    part = load("methods", own.reference)
    if isinstance(part, Method):
        plain = options.AdaptiveLevelsOptions if part.fit else options.FixedLevelsOptions
        declared = getattr(sys.modules[own.reference.partition(":")[0]], "OPTIONS", plain)
        return Quantizer(part, declared.model_validate({"method": own.reference, **own.options}))
    part, given = own.load()
    compressor: Compressor = checked(own.what, call(own.what, part, options=given), Compressor)
    compressor.name = own.reference
    return compressor


def _coding(bits: int, bucket_size: int, rotated: bool) -> str:
    return f"{bits} bits in {'rotated ' if rotated else ''}buckets of {bucket_size}"
