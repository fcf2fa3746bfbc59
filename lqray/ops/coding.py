"""The operators of codes alone: bit planes, and their entropy coding, which runs on the CPU.

As those of `lqray.ops`, of which they are a part: a reference for every device, native kernels for CPU tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lqray.ops import rans_reference, reference
from lqray.ops.checks import check_codes, check_memory, check_planes, check_stream, code_bytes

_library = torch.library.Library("lqray", "FRAGMENT")
_library.define("pack(Tensor codes, int bits) -> Tensor")
_library.define("unpack(Tensor codes, int n, int bits) -> Tensor")
_library.define("rans_encode(Tensor codes, int bits) -> (Tensor, int)")
_library.define("rans_decode(Tensor stream, int n, int bits) -> (Tensor, int)")


def _pack(codes: Tensor, bits: int) -> Tensor:
    check_codes("pack", codes, bits)
    return reference.pack(codes, bits)


def _unpack(codes: Tensor, n: int, bits: int) -> Tensor:
    check_planes("unpack", codes, n, bits)
    return reference.unpack(codes, n, bits)


_DEFAULT = "CompositeExplicitAutograd"
_library.impl("pack", _pack, _DEFAULT)
_library.impl("unpack", _unpack, _DEFAULT)
_library.impl("rans_encode", rans_reference.rans_encode, _DEFAULT)
_library.impl("rans_decode", rans_reference.rans_decode, _DEFAULT)

_FAULTS = {
    rans_reference.TOO_SHORT: "is too short for {n} codes: {size} bytes were found",
    rans_reference.FREQUENCIES: "has frequencies that do not add up: its bytes were damaged",
    rans_reference.STATES: "has a lane without a valid state: its bytes were damaged",
    rans_reference.ENDS_EARLY: "ends before the last of {n} codes",
    rans_reference.GOES_ON: "goes on after the last of {n} codes",
    rans_reference.OTHER_CODES: "is not that of the {n} codes it decodes to: its bytes were damaged",
}


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes as bit planes: (n,) uint8, of which the lowest `bits` bits count, to (code_bytes(n, bits),) uint8.
    Raises ValueError for another shape, dtype or number of bits."""
    check_memory("pack", codes=codes)
    check_codes("pack", codes, bits)
    return torch.ops.lqray.pack(codes, bits)  # type: ignore[no-any-return]


def unpack(codes: Tensor, n: int, bits: int) -> Tensor:
    """Codes of bit planes, one for each coordinate: (code_bytes(n, bits),) uint8 to (n,) uint8. Raises ValueError for
    another length or dtype."""
    check_memory("unpack", codes=codes)
    check_planes("unpack", codes, n, bits)
    return torch.ops.lqray.unpack(codes, n, bits)  # type: ignore[no-any-return]


def rans_encode(codes: Tensor, bits: int) -> Tensor:
    """An entropy-coded stream of codes, about as long as their empirical entropy: (n,) uint8 of the CPU to (m,) uint8.

    Frequencies are those of the codes, in units of 2**-14. Raises ValueError for a code of 2**bits or more, another
    shape, dtype or device, or a number of bits that is not 1 to 8.
    """
    check_memory("rans_encode", codes=codes)
    check_codes("rans_encode", codes, bits)
    _check_cpu("rans_encode", "codes", codes)
    stream, fault = torch.ops.lqray.rans_encode(codes, bits)
    if fault:
        raise ValueError(f"rans_encode: a code is {int(codes.max())}; allowed with {bits} bits: 0 to {2**bits - 1}")
    return stream  # type: ignore[no-any-return]


def rans_decode(stream: Tensor, n: int, bits: int) -> Tensor:
    """The n codes of a stream: (m,) uint8 of the CPU, whatever its bytes, to (n,) uint8. Raises ValueError for bytes
    that are no stream of n codes of so many bits, another shape, dtype or device."""
    check_memory("rans_decode", stream=stream)
    check_stream("rans_decode", stream, n, bits)
    _check_cpu("rans_decode", "stream", stream)
    codes, fault = torch.ops.lqray.rans_decode(stream, n, bits)
    if fault:
        raise ValueError(f"an entropy-coded stream {_FAULTS[fault].format(n=n, size=stream.numel())}")
    return codes  # type: ignore[no-any-return]


def _check_cpu(op: str, name: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"{op}: {name} is on {tensor.device}; allowed: the CPU (`.cpu()`)")


@torch.library.register_fake("lqray::pack", lib=_library)
def _(codes: Tensor, bits: int) -> Tensor:
    check_codes("pack", codes, bits)
    return codes.new_empty(code_bytes(codes.numel(), bits))


@torch.library.register_fake("lqray::unpack", lib=_library)
def _(codes: Tensor, n: int, bits: int) -> Tensor:
    check_planes("unpack", codes, n, bits)
    return codes.new_empty(n)


@torch.library.register_fake("lqray::rans_encode", lib=_library)
def _(codes: Tensor, bits: int) -> tuple[Tensor, int]:
    check_codes("rans_encode", codes, bits)
    return codes.new_empty(torch.library.get_ctx().new_dynamic_size()), 0


@torch.library.register_fake("lqray::rans_decode", lib=_library)
def _(stream: Tensor, n: int, bits: int) -> tuple[Tensor, int]:
    check_stream("rans_decode", stream, n, bits)
    return stream.new_empty(n), 0
