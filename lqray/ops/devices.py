"""CUDA devices that the native library has kernels for; operators on the others run on their reference."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

_log = logging.getLogger(__name__)
_left: set[int] = set()


def runs_on(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether a GPU of a compute capability (major, minor) runs what was compiled for `architectures`.

    These are nvcc's names: "sm_86" is machine code, which runs on 8.6 and later minor versions of 8; "compute_86" is
    PTX, which the driver compiles for 8.6 and everything later. With an "a" at its end either is for that very
    capability alone, with an "f" for later minor versions too.
    """
    return any(_one_runs_on(name, capability) for name in architectures)


def _one_runs_on(name: str, capability: tuple[int, int]) -> bool:
    kind, _, number = name.partition("_")
    digits = number.rstrip("af")
    compiled = (int(digits[:-1]), int(digits[-1]))
    if number.endswith("a"):
        return capability == compiled
    later_majors = kind == "compute" and not number.endswith("f")
    return capability >= compiled and (later_majors or capability[0] == compiled[0])


def lacking(architectures: Iterable[str]) -> frozenset[int]:
    """Indices of this process's CUDA devices that kernels for `architectures` do not run on. Starts CUDA."""
    compiled = tuple(architectures)
    devices = range(torch.cuda.device_count())
    return frozenset(index for index in devices if not runs_on(compiled, torch.cuda.get_device_capability(index)))


def on_start(act: Callable[[], None]) -> None:
    """Do this when CUDA starts in this process, before there is a tensor on any of its devices; now, if it runs.

    An import is too early to ask devices what they are: that starts CUDA, and whoever forks afterwards has none.
    """
    torch.cuda._lazy_call(act)


def leave_to_reference(
    library: torch.library.Library,
    references: Mapping[str, Callable[..., Any]],
    devices: frozenset[int],
    key: str = "CUDA",
) -> None:
    """Where the first tensor is on one of `devices`, an operator's reference serves, elsewhere its kernel as before.

    references: by operator of `library`. devices: indices; that of a CPU tensor is 0. key: the kernels' dispatch key.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # kernels are overridden on purpose
        for operator, reference in references.items():
            kernel = torch.library.get_kernel(f"lqray::{operator}", key)
            library.impl(operator, _either(kernel, reference, devices), key, with_keyset=True, allow_override=True)
    _left.update(devices)


def left_to_reference(index: int) -> bool:
    """Whether the reference serves a CUDA device that the library could not. Known when CUDA has started."""
    return index in _left


def _either(kernel: Any, reference: Callable[..., Any], devices: frozenset[int]) -> Callable[..., Any]:
    def serve(keys: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        if (arguments[0].device.index or 0) in devices:
            return reference(*arguments)
        return kernel.call_boxed(keys, *arguments)

    return serve


def say(devices: frozenset[int], why: str) -> None:
    """A warning that names the devices which the reference serves."""
    names = []
    for index in sorted(devices):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"cuda:{index} ({torch.cuda.get_device_name(index)}, {major}.{minor})")
    _log.warning("lqray runs on its reference operators, which are slow, on %s: %s", ", ".join(names), why)
