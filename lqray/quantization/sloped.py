"""Quantizers whose decoder knows the noise of the encoder: levels with slopes, and subtractive dither.

All workers round with one stream of random numbers, each at a phase of its own, which travels with its payload: so the
decoder generates one stream for all payloads. See `lqray.ops.slopes` and docs/wire-format.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lqray import ops
from lqray.experiment.options import quantizer as options
from lqray.quantization import codec
from lqray.quantization.codec import LevelPayload
from lqray.quantization.histogram import Histogram
from lqray.quantization.method import Method
from lqray.quantization.payload import Payload
from lqray.quantization.place import PHASE_BYTES, SHARED_SEED, Place, read_phases, write_phase
from lqray.quantization.quantizer import Quantizer
from lqray.quantization.slope_solver import Sloped, fit_slopes, gaps_as_slopes, widest_error

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SlopedPayload(LevelPayload):
    """A `LevelPayload` with the phase of the worker that made it, a uint32, at the end. stream: seed of the random
    stream that it is a phase of, which receivers know."""

    stream: int = SHARED_SEED

    @property
    def expected_bytes(self) -> int:
        """See `Payload.expected_bytes`."""
        return super().expected_bytes + PHASE_BYTES


class SlopedQuantizer(Quantizer):
    """A quantizer whose levels have slopes; see `lqray.quantization.slope_solver`. One that fits them fits both, to the
    histogram of what was observed. Unbiased, and of a smaller variance than levels alone, with the same codes."""

    METHOD_OF_LEVELS: ClassVar[Method]
    """linf norms, the levels to start with, and what is observed; slopes start as the gaps of uniform levels."""

    def __init__(self, chosen: options.FixedLevelsOptions) -> None:
        super().__init__(self.METHOD_OF_LEVELS, chosen)
        self._slope_copies: dict[torch.device, Tensor] = {}
        self.set_slopes(gaps_as_slopes(self._levels))

    @property
    def slopes(self) -> Tensor:
        """float32 (L,) on the CPU: one for each level, not negative."""
        return self._wire_slopes

    def set_slopes(self, slopes: Array) -> None:
        """Replace the slopes: float64 (L,), allowed with the levels that there are (`lqray.ops.slopes`)."""
        self._wire_slopes = torch.from_numpy(slopes.astype(np.float32))
        self._slope_copies.clear()
        self._slopes = slopes

    def slopes_on(self, device: torch.device) -> Tensor:
        """`slopes` on a device, copied once."""
        if device not in self._slope_copies:
            self._slope_copies[device] = self._wire_slopes.to(device)
        return self._slope_copies[device]

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> SlopedPayload:
        """See `Quantizer.encode`."""
        return self.encode_at(tensor, Place(), seed=seed, offset=offset)

    def encode_at(self, tensor: Tensor, place: Place, *, seed: int, offset: int) -> SlopedPayload:
        """See `Compressor.encode_at`; phases are those of `Place.phase`."""
        ops.check_memory("encode", tensor=tensor)
        phase = place.phase(seed)
        tables = self.levels_on(tensor.device), self.slopes_on(tensor.device)
        kind = self.coding.bits, self.coding.bucket_size, place.shared_seed, offset, phase
        plain = codec.encode_with(
            tensor, self.coding, offset, lambda coordinates: ops.slopes_encode(coordinates, *tables, *kind)
        )
        fields = {**vars(plain), "buffer": torch.cat([plain.buffer, write_phase(phase, tensor.device)])}
        return SlopedPayload(**fields, stream=place.shared_seed)

    def decode(self, payload: Payload) -> Tensor:
        """See `Quantizer.decode`."""
        own = self._own(payload)
        own.check()
        return self._sum(own.buffer[None], own, 1.0)

    def decode_mean(self, payloads: Tensor, like: Payload) -> Tensor:
        """See `Quantizer.decode_mean`."""
        like.check(payloads)
        return self._sum(payloads, self._own(like), 1.0 / len(payloads))

    def _sum(self, payloads: Tensor, like: SlopedPayload, scale: float) -> Tensor:
        device = payloads.device
        phases = read_phases(payloads[:, -PHASE_BYTES:])
        total = ops.slopes_decode_sum(
            payloads[:, : like.head_bytes],
            phases,
            self.levels_on(device),
            self.slopes_on(device),
            like.coded,
            like.bits,
            like.bucket_size,
            like.stream,
            like.offset,
            scale,
        )
        return codec.assemble(total, codec.tail_sum(payloads, like, scale), like)

    def _own(self, payload: Payload) -> SlopedPayload:
        own = super()._own(payload)
        if not isinstance(own, SlopedPayload):
            raise ValueError(f"the payload has no phase; allowed: one that {self.name} has made")
        return own

    def rescaled(self, payload: Payload, corrected: Tensor, decoded: Tensor) -> LevelPayload:
        """See `LevelPayload.rescaled`."""
        return self._own(payload).rescaled(corrected, decoded)

    def why_no_contraction(self) -> str | None:
        """Where slopes never change, by the largest error that they allow."""
        if self.adapts or self.coding.bucket_size == 1:
            return None
        error = widest_error(self._levels, self._slopes)
        why = f"an error may be {error:.3g} times the largest magnitude of its bucket"
        return f"{why}; allowed: below 1" if error >= 1 - 1e-9 else None

    @property
    def bounded(self) -> bool:
        """While no error reaches the largest magnitude of its bucket; a rotation does not keep that."""
        return not self.coding.rotate and widest_error(self._levels, self._slopes) < 1 - 1e-9

    @property
    def adapts(self) -> bool:
        """Slopes do with a single bit, too."""
        chosen = self.options
        return isinstance(chosen, options.AdaptiveLevelsOptions) and bool(chosen.update_at or chosen.update_every)

    def _fit_to(self, distribution: Histogram) -> None:
        current = Sloped(self._levels, self._slopes, self.expected_variance)
        common = isinstance(self.options, options.SlopesOptions) and self.options.slope == "common"
        found = fit_slopes(distribution.points, distribution.weights, current, common)
        self.set_levels(found.levels)
        self.set_slopes(found.slopes)
        self.expected_variance = found.variance

    def parameters(self) -> Array:
        """Levels, slopes and their expected variance where they were fitted: (2 L + 1,) float64."""
        return np.concatenate([self._levels, self._slopes, [self.expected_variance]])

    def adopt(self, parameters: Array) -> None:
        """See `Quantizer.adopt`."""
        count = self._levels.size
        super().adopt(np.append(parameters[:count], parameters[-1]))
        self.set_slopes(parameters[count:-1].copy())

    def fingerprint(self) -> bytes:
        """Levels and slopes as they are used on the wire."""
        return super().fingerprint() + bytes(self.slopes.numpy().tobytes())

    def tensors_on(self, device: torch.device) -> list[Tensor]:
        """Levels and slopes."""
        return [self.levels_on(device), self.slopes_on(device)]

    def telemetry(self) -> dict[str, float]:
        """As of `Quantizer`, and every slope."""
        return super().telemetry() | {f"quantizer/slope/{j}": slope for j, slope in enumerate(self.slopes.tolist())}

    def state_dict(self) -> dict[str, Tensor]:
        """See `Quantizer.state_dict`; slopes, too."""
        return super().state_dict() | {"slopes": torch.from_numpy(self._slopes.copy())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Quantizer.load_state_dict`."""
        super().load_state_dict(state)
        self.set_slopes(state["slopes"].cpu().numpy().copy())
