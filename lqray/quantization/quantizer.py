"""A quantizer: a method, its levels, and what it has seen of the gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lqray.experiment import names, options
from lqray.experiment.errors import did_you_mean
from lqray.quantization import codec
from lqray.quantization.codec import Payload
from lqray.quantization.levels import Levels, as_float32
from lqray.quantization.methods import Method, load_method
from lqray.quantization.schedule import UpdateSchedule
from lqray.quantization.statistics import BucketStatistics, bucket_statistics


class Quantizer:
    """Encodes gradients with levels that may adapt to them.

    `observe` gathers statistics, `update_levels` fits the levels to them and forgets them. Everything that decides the
    next step is in `state_dict()`. Quantizers of all ranks must have equal levels; `lqray.communication` sees to it.
    """

    def __init__(self, method: Method, chosen: options.FixedLevelsOptions) -> None:
        self.method = method
        self.options = chosen
        self.bits = chosen.bits
        self.bucket_size = chosen.bucket_size
        adaptive = chosen if isinstance(chosen, options.AdaptiveLevelsOptions) else None
        self.schedule = UpdateSchedule(adaptive.update_at, adaptive.update_every) if adaptive else UpdateSchedule()
        self.samples = adaptive.samples if adaptive else 0
        self._levels: Levels = method.initial_levels(chosen)
        self._wire_levels = torch.from_numpy(as_float32(self._levels))
        self._observed: list[BucketStatistics] = []

    @classmethod
    def create(cls, method: str, bits: int = 3, bucket_size: int = 8192, **others: Any) -> Quantizer:
        """A quantizer by name of its method; `others` are the method's options (`lqray.experiment.options`).

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
        validated = chosen.model_validate({"method": method, "bits": bits, "bucket_size": bucket_size, **others})
        assert isinstance(validated, options.FixedLevelsOptions)
        return cls(spec, validated)

    @property
    def levels(self) -> Tensor:
        """float32 (L,) on the CPU: strictly increasing from -1 to 1."""
        return self._wire_levels

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> Payload:
        """Stochastically rounded codes of a tensor of any shape; E[decode(encode(x))] = x over seeds.

        seed: unsigned 64-bit, different for every worker. offset: unsigned 64-bit, different for every tensor and step.
        """
        return codec.encode(
            tensor,
            self._levels_on(tensor.device),
            bits=self.bits,
            bucket_size=self.bucket_size,
            norm=self.method.norm,
            seed=seed,
            offset=offset,
        )

    def decode(self, payload: Payload) -> Tensor:
        """The (n,) tensor that a payload stands for, in the dtype of the tensor encoded."""
        return codec.decode(payload, self._levels_on(payload.buffer.device))

    def observe(self, tensor: Tensor) -> None:
        """Add the bucket statistics of a gradient of any shape to what the next `update_levels` fits to."""
        if self.method.fit is not None:
            self._observed.append(bucket_statistics(tensor.detach().reshape(-1), self.bucket_size, self.method.norm))

    @property
    def statistics(self) -> BucketStatistics:
        """Everything observed since the last update of the levels."""
        return BucketStatistics.merge(self._observed)

    def update_levels(self, statistics: BucketStatistics | None = None) -> bool:
        """Fit the levels to `statistics`, by default to what was observed here, and forget the latter.

        Returns whether the levels changed. They stay when there is nothing to fit to (no bucket of positive norm and
        deviation) and are never replaced by worse ones.
        """
        statistics = self.statistics if statistics is None else statistics
        self._observed.clear()
        if self.method.fit is None:
            return False
        assert isinstance(self.options, options.AdaptiveLevelsOptions)
        fitted = self.method.fit(statistics, self._levels, self.options)
        changed = not np.array_equal(fitted, self._levels)
        self.set_levels(fitted)
        return changed

    def set_levels(self, levels: Levels) -> None:
        """Replace the levels: float64 (L,), as solved on another rank. Raises ValueError unless valid in float32."""
        self._wire_levels = torch.from_numpy(as_float32(levels))
        self._levels = levels

    @property
    def exact_levels(self) -> Levels:
        """The levels in float64, as solved; the wire uses them rounded to float32."""
        return self._levels

    def state_dict(self) -> dict[str, Tensor]:
        """Levels and statistics as float64 tensors; loading them gives the same next step, bit for bit."""
        return {
            "levels": torch.from_numpy(self._levels.copy()),
            "statistics": torch.from_numpy(self.statistics.table()),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.set_levels(state["levels"].cpu().numpy().copy())
        self._observed = [BucketStatistics.from_table(state["statistics"].cpu().numpy().copy())]

    def _levels_on(self, device: torch.device) -> Tensor:
        return self._wire_levels.to(device)
