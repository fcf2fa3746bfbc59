"""Of pytest, in the processes that ask the emulated library: the machine's settings before the tests, what it ran after
them. A library that did not load would only be skipped by the tests; here it ends them."""

import ctypes
import os

import pytest
import torch

from lqray import ops

ORDERS = ["random", "highest", "lowest", "mixed"]


def settings(order: str, most_blocks: int = 0, last_blocks: int = 0, seed: int = 0) -> None:
    """How the launches that follow are run.

    order: "random"; "highest": the highest warp, and its highest lane, goes as far as it gets; "lowest"; "mixed":
    another of these for each launch. most_blocks: of a grid, whose kernels then take several rounds; 0: no bound.
    last_blocks: only these of a grid run; 0: all.
    """
    function = _library().lqray_emulated_settings
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint64]
    function(ORDERS.index(order), most_blocks, last_blocks, seed)


def asked_settings() -> None:
    """Those that this process was started with."""
    order, most_blocks, seed = os.environ["LQRAY_EMULATED"].split()
    settings(order, int(most_blocks), 0, int(seed))


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(ops.loaded.path))


def pytest_configure(config: pytest.Config) -> None:
    """Applies the settings."""
    if ops.loaded.instruction_set != "emulated CUDA":
        raise pytest.UsageError(f"the emulated library did not load: {ops.loaded.reason}")
    torch.set_num_threads(1)
    asked_settings()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was run."""
    totals = _library().lqray_emulated_totals
    totals.restype = ctypes.c_char_p
    terminalreporter.write_line(f"emulated: {totals().decode()}")
