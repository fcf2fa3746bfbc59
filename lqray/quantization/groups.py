"""Number formats of groups that share a scale: 8-bit integers, and the microscaling formats of the Open Compute Project
(OCP MX specification 1.0, 2023). What a user of 8 bits and less would try first."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lqray import ops
from lqray.ops.allocation import power_of_two
from lqray.quantization.codec import cast, flattened, nearest_factors
from lqray.quantization.compressor import Compressor
from lqray.quantization.payload import CodePlanes, Payload, floats
from lqray.quantization.place import Place

_SCALE_BIAS = 127
_NOT_A_NUMBER = 255


@dataclass(frozen=True)
class GroupPayload(Payload):
    """Scales of groups, then bit planes of codes: the buffer holds `scale_bytes` for each group of `group` coordinates,
    filled up to a multiple of 4, then `bits` planes."""

    bits: int
    group: int
    scale_bytes: int

    @property
    def groups(self) -> int:
        """How many; the last one may be short."""
        return -(-self.n // self.group)

    @property
    def head_bytes(self) -> int:
        """Bytes of scales."""
        size = self.scale_bytes * self.groups
        return size + -size % 4

    @property
    def expected_bytes(self) -> int:
        """See `Payload.expected_bytes`."""
        return self.head_bytes + ops.code_bytes(self.n, self.bits)

    def planes(self) -> tuple[CodePlanes, ...]:
        """See `Payload.planes`."""
        return (CodePlanes(self.head_bytes, self.n, self.bits),)

    def described(self) -> str:
        """See `Payload.described`."""
        return f"{self.n} coordinates of {self.bits} bits in groups of {self.group}"


class Groups(Compressor):
    """Coordinates over their group's scale, rounded to the numbers of a format. nearest: those beyond its largest one
    become that. stochastic: unbiased, and scales are large enough that none is beyond."""

    numbers: Tensor
    """What the format has, float32 ascending, at most 256."""

    def __init__(self, options: object) -> None:
        super().__init__(options)
        self.deterministic = self.options.round == "nearest"
        self.unbiased = not self.deterministic
        self._copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def group(self) -> int:
        """Coordinates that share a scale."""
        return int(self.options.bucket_size)

    @property
    def unit(self) -> int:
        """Whole groups, and whole groups of 32."""
        return math.lcm(self.group, 32)

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> GroupPayload:
        """See `Compressor.encode`; with nearest rounding no seed enters."""
        return self.encode_at(tensor, Place(), seed=seed, offset=offset)

    def encode_at(self, tensor: Tensor, place: Place, *, seed: int, offset: int) -> GroupPayload:
        """See `Compressor.encode_at`; where `place` says so, stochastic rounding is correlated over workers."""
        x = flattened(self.name, tensor)
        levels, edges = self.tensors_on(x.device)
        largest = ops.bucket_norms(x, self.group, "linf")
        head, norms = self.scales_of(largest)
        bits = (levels.numel() - 1).bit_length()
        if self.unbiased and place.correlated and place.workers > 1:
            kind, at = (bits, self.group, "linf"), (place.shared_seed, place.worker, place.workers)
            codes = ops.correlated_encode(x, levels, *kind, seed, offset, *at, norms)[4 * norms.numel() :]
        elif self.unbiased:
            codes = ops.encode(x, norms, levels, bits, self.group, seed, offset)
        else:
            r = x.to(torch.float32) / norms.repeat_interleave(self.group)[: x.numel()]
            codes = ops.pack(torch.bucketize(r.nan_to_num(nan=0.0), edges, right=True).to(torch.uint8), bits)
        buffer = torch.cat([head, head.new_zeros(-head.numel() % 4), codes])
        groups = max(1, largest.numel())
        return GroupPayload(buffer, x.numel(), tensor.dtype, offset, bits, self.group, head.numel() // groups)

    def decode(self, payload: Payload) -> Tensor:
        """See `Compressor.decode`."""
        payload.check()
        assert isinstance(payload, GroupPayload)
        levels, _ = self.tensors_on(payload.buffer.device)
        head = payload.buffer[: payload.scale_bytes * payload.groups]
        norms = self.norms_of(head).view(torch.uint8)
        whole = torch.cat([norms, payload.buffer[payload.head_bytes :]])
        decoded = ops.decode(whole, levels, payload.n, payload.bits, self.group)
        return cast(decoded, payload.dtype, payload.offset)

    def rescaled(self, payload: Payload, corrected: Tensor, decoded: Tensor) -> Payload:
        """Each group's scale times the factor that brings it nearest."""
        assert isinstance(payload, GroupPayload)
        buffer = payload.buffer.clone()
        head = buffer[: payload.scale_bytes * payload.groups]
        head.copy_((floats(head) * nearest_factors(corrected, decoded, self.group)).view(torch.uint8))
        return replace(payload, buffer=buffer)

    def scales_of(self, largest: Tensor) -> tuple[Tensor, Tensor]:
        """Of the largest magnitude of each group, float32 (G,): the bytes that travel, uint8, and what the largest
        number of the format stands for, float32 (G,)."""
        return largest.view(torch.uint8), largest

    def norms_of(self, head: Tensor) -> Tensor:
        """The second of `scales_of`, of its first."""
        return floats(head)

    def tensors_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """See `Compressor.tensors_on`: the format's numbers over its largest, and the middles between them."""
        if device not in self._copies:
            levels = self.numbers / self.numbers[-1]
            self._copies[device] = levels.to(device), ((levels[1:] + levels[:-1]) / 2).to(device)
        return self._copies[device]


class Microscaling(Groups):
    """Groups of 32 whose scale is a power of two in a byte (E8M0): 2^(floor(log2 m) - e), m the group's largest
    magnitude and e the exponent of the format's largest number, as the specification proposes, so that magnitudes of
    less than a doubling beyond it are clipped; with stochastic rounding the next power where m would be."""

    @property
    def group(self) -> int:
        """See `Groups.group`."""
        return 32

    def rescaled(self, payload: Payload, corrected: Tensor, decoded: Tensor) -> Payload:
        """As it is: a power of two cannot be brought nearer."""
        return payload

    def scales_of(self, largest: Tensor) -> tuple[Tensor, Tensor]:
        """See `Groups.scales_of`."""
        top = float(self.numbers[-1])
        exponent = torch.frexp(largest.nan_to_num(nan=0.0)).exponent - 1 - math.floor(math.log2(top))
        if self.unbiased:
            exponent = exponent + (torch.ldexp(largest.to(torch.float64), -exponent) > top)
        code = (exponent + _SCALE_BIAS).clamp(0, _NOT_A_NUMBER - 1)
        code = torch.where(largest == 0, 0, code).masked_fill(largest.isnan(), _NOT_A_NUMBER).to(torch.uint8)
        return code, self.norms_of(code)

    def norms_of(self, head: Tensor) -> Tensor:
        """See `Groups.norms_of`."""
        exponent = head.to(torch.int32) - _SCALE_BIAS
        half = torch.div(exponent, 2, rounding_mode="floor")  # two factors: the least scale is beyond one of float32
        scale = power_of_two(half) * power_of_two(exponent - half) * float(self.numbers[-1])
        return scale.masked_fill(head == _NOT_A_NUMBER, torch.nan)


def float_numbers(exponents: int, mantissas: int, largest: float) -> Tensor:
    """What a small float has: subnormals, then mantissas of `mantissas` bits for each of 2**exponents - 1 exponents, up
    to the largest; both signs and one zero, float32 ascending."""
    step = 2.0**-mantissas
    bias = 2 ** (exponents - 1) - 1
    positive = [m * step * 2.0 ** (1 - bias) for m in range(1, 2**mantissas)]
    positive += [(1 + m * step) * 2.0 ** (e - bias) for e in range(1, 2**exponents) for m in range(2**mantissas)]
    kept = torch.tensor([one for one in positive if one <= largest])
    return torch.cat([-kept.flip(0), torch.zeros(1), kept])
