"""How an exchange numbers what it sends: rounding noise is a function of the number, so none comes twice.

A tensor's offset: 20 bits of DDP bucket, 32 of iteration, 11 of layer within it; the highest is a reduction's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lqray.ops.checks import signed
from lqray.quantization.place import SHARED_SEED

_ITERATION_SHIFT, _LAYER_SHIFT = 20, 52
MOST_LAYERS = 2**11
_MOST_BUCKETS, _MOST_ITERATIONS = 2**_ITERATION_SHIFT, 2 ** (_LAYER_SHIFT - _ITERATION_SHIFT)


def offset_of(iteration: int, index: int) -> int:
    """Of DDP bucket `index` of an iteration."""
    return iteration << _ITERATION_SHIFT | index


def layer_offset(first: int, number: int) -> int:
    """Of tensor `number` of the DDP bucket whose offset is `first`."""
    return first | number << _LAYER_SHIFT


def seed_to_keep(seed: int) -> Tensor:
    """The seed of what workers draw together as a checkpoint has it: int64."""
    return torch.tensor(signed(seed))


def kept_seed(kept: Tensor | None) -> int:
    """What `seed_to_keep` was given; None, of a checkpoint from before 2026-11-27, when all trials had one."""
    return SHARED_SEED if kept is None else int(kept) % 2**64


def check_iteration(iteration: int, last: int) -> None:
    """Raises ValueError unless an iteration may begin after gradients of iteration `last` were exchanged."""
    if not 0 <= iteration < _MOST_ITERATIONS:
        raise ValueError(f"begin_step({iteration}); allowed: iterations from 0 to {_MOST_ITERATIONS - 1}")
    if iteration <= last:
        raise ValueError(
            f"begin_step({iteration}) after gradients of iteration {last} were exchanged: the rounding noise "
            "of a step is a function of its iteration, and would be repeated. Count on from step to step, over "
            "epochs, too; to go back to an earlier step, restore its state first (load_state_dict)"
        )


def check_layers(count: int) -> None:
    """Raises ValueError for more tensors of a DDP bucket than have numbers."""
    if count > MOST_LAYERS:
        raise ValueError(
            f"a DDP bucket holds {count} tensors that are encoded apart, by exchange.buckets: layer, or by bits or "
            f"levels of their own; allowed: {MOST_LAYERS}. Lower exchange.bucket_cap_mb"
        )


def check_index(index: int) -> None:
    """Raises ValueError for a number of a tensor of a step that there is not."""
    if not 0 <= index < _MOST_BUCKETS:
        raise ValueError(f"tensor number {index} of a step; allowed: 0 to {_MOST_BUCKETS - 1}")
