"""A quantizer: a method, its levels, and what it has seen of the gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lqray import ops
from lqray.experiment import names
from lqray.experiment.errors import did_you_mean
from lqray.experiment.options import quantizer as options
from lqray.quantization import codec
from lqray.quantization.codec import Coding, Payload
from lqray.quantization.fitting import Statistics
from lqray.quantization.levels import Levels, as_float32
from lqray.quantization.methods import Method, load_method
from lqray.quantization.schedule import UpdateSchedule


class Quantizer:
    """Encodes gradients with levels that may adapt to them.

    `observe` gathers statistics, `update_levels` fits the levels to them and forgets them. Everything that decides the
    next step is in `state_dict()`. Quantizers of all ranks must have equal levels; `lqray.communication` sees to it.
    """

    def __init__(self, method: Method, chosen: options.FixedLevelsOptions | options.TernaryOptions) -> None:
        self.method = method
        self.options = chosen
        self.coding = Coding(
            bits=chosen.bits,
            bucket_size=chosen.bucket_size,
            norm=method.norm,
            rotate=chosen.rotation == "hadamard",
            raw_tail=chosen.tail == "full_precision",
            clip=chosen.clip if isinstance(chosen, options.TernaryOptions) else None,
        )
        adaptive = chosen if isinstance(chosen, options.AdaptiveLevelsOptions) else None
        self.schedule = UpdateSchedule(adaptive.update_at, adaptive.update_every) if adaptive else UpdateSchedule()
        self.samples = adaptive.samples if adaptive else 0
        self.fresh_samples = adaptive is not None and adaptive.sampling == "fresh"
        self.updates = 0
        self.expected_variance = math.nan
        """Psi of the levels under the distribution that they were last fitted to; NaN before."""
        self._levels: Levels = method.initial_levels(chosen)
        self._wire_levels = torch.from_numpy(as_float32(self._levels))
        self._copies: dict[torch.device, Tensor] = {}
        self._observed: dict[int, Statistics] = {}

    @classmethod
    def create(cls, method: str, bits: int = 3, bucket_size: int = 8192, **others: Any) -> Quantizer:
        """A quantizer by name of its method; `others` are the method's options (`lqray.experiment.options`). As in
        YAML, a method with a number of bits of its own (terngrad) leaves `bits` out.

        Raises ValueError for an unknown method, one that sends no codes, or options that it does not have.
        """
        if method not in names.methods():
            hint = did_you_mean(method, names.methods())
            raise ValueError(
                f"unknown method {method!r}; allowed: {', '.join(names.methods())}" + (f"; {hint}" if hint else "")
            )
        spec = load_method(method)
        if spec is None:
            raise ValueError(f"{method} sends no codes, so there is nothing to quantize")
        chosen = options.QUANTIZER.get(method, options.FixedLevelsOptions)
        own_bits = {"bits": bits} if "bits" in chosen.model_fields else {}
        validated = chosen.model_validate({"method": method, "bucket_size": bucket_size, **own_bits, **others})
        assert isinstance(validated, options.FixedLevelsOptions | options.TernaryOptions)
        return cls(spec, validated)

    @property
    def levels(self) -> Tensor:
        """float32 (L,) on the CPU: strictly increasing from -1 to 1."""
        return self._wire_levels

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> Payload:
        """Stochastically rounded codes of a tensor of any shape; E[decode(encode(x))] = x over seeds.

        seed: unsigned 64-bit, different for every worker. offset: unsigned 64-bit, different for every tensor and step.
        """
        ops.check_memory("encode", tensor=tensor)
        return codec.encode(tensor, self.levels_on(tensor.device), self.coding, seed=seed, offset=offset)

    def decode(self, payload: Payload) -> Tensor:
        """The (n,) tensor that a payload stands for, in the dtype of the tensor encoded: float16 and bfloat16 ones
        stochastically rounded, finite ones to finite numbers (`lqray.quantization.codec.cast`). Raises ValueError for a
        payload of wrong length or of another quantizer's bits or buckets."""
        self._check_own(payload)
        return codec.decode(payload, self.levels_on(payload.buffer.device))

    def decode_mean(self, payloads: Tensor, like: Payload) -> Tensor:
        """Mean of W decoded payloads, rows of (W, nbytes), in their order; `like` is one of them: (n,). The mean is
        taken in float32 and cast once; dtype and errors as of `decode`."""
        self._check_own(like)
        like.check(payloads)
        return codec.decode_sum(payloads, like, self.levels_on(payloads.device), 1.0 / len(payloads))

    def _check_own(self, payload: Payload) -> None:
        found = payload.bits, payload.bucket_size, payload.rotation is not None
        own = self.coding.bits, self.coding.bucket_size, self.coding.rotate
        if found != own:
            raise ValueError(
                f"the payload is of {_coding(*found)}; allowed: {_coding(*own)}, which is this quantizer's"
            )

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
        gradient = codec.flattened("observe", tensor)
        seen = fit.observe(
            codec.rotate(codec.clip(gradient, self.coding), self.coding, 0), self.coding.norm, self.options
        )
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
        assert self.method.fit is not None
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
        fitted = self._levels
        if distribution is not None:
            fitted = self.method.fit.levels(distribution, self._levels, self.options)
            self.expected_variance = float(distribution.expected_variance(fitted))
        changed = not np.array_equal(fitted, self._levels)
        self.set_levels(fitted)
        self.updates += 1
        return changed

    def adopt_levels(self, levels: Levels, expected_variance: float) -> None:
        """As `update_levels`, of levels that another rank has fitted: float64 (L,), and their expected variance there.
        Raises ValueError unless they are valid in float32."""
        self._observed.clear()
        self.set_levels(levels)
        self.expected_variance = expected_variance
        self.updates += 1

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
                state[f"statistics/{worker}"] = torch.from_numpy(seen.table())
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
            tables = {key.partition("/")[2]: value for key, value in state.items() if key.startswith("statistics/")}
            self._observed = {
                int(worker): self.method.fit.statistics.from_table(table.cpu().numpy().copy())
                for worker, table in tables.items()
            }

    def levels_on(self, device: torch.device) -> Tensor:
        """`levels` on a device, copied once: a copy to a GPU makes the host wait."""
        if device not in self._copies:
            self._copies[device] = self._wire_levels.to(device)
        return self._copies[device]


def _coding(bits: int, bucket_size: int, rotated: bool) -> str:
    return f"{bits} bits in {'rotated ' if rotated else ''}buckets of {bucket_size}"
