"""What every compressor is: the contract between whatever turns gradients into bytes and whatever sends them.

A method of lqray, one of a user's own, a quantizer with levels that adapt: all are a `Compressor`. The least of one is
`encode` and `decode`; the rest has an answer that is right for a compressor that does not adapt. `lqray.testing` holds
one to all of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lqray.quantization.codec import cast
from lqray.quantization.payload import Payload
from lqray.quantization.place import Place
from lqray.quantization.regrouping import Regrouping, alike
from lqray.quantization.schedule import UpdateSchedule

Array = NDArray[np.float64]


class Compressor(ABC):
    """Encodes gradients. All ranks have one of equal options and parameters; it holds nothing else that decoding
    depends on, so that payloads of all ranks decode alike everywhere, to the bit.

    unbiased: E[decode(encode(x))] = x over seeds. deterministic: no seed enters. linear: payloads may be averaged as
    they are, before decoding; see `mean_payload`. layers: each parameter's tensor is encoded on its own and in its own
    shape, as low-rank approximations want; else tensors come flat, many parameters in one. unit: where a tensor is cut
    so that several ranks each take a part, every part but the last is a multiple of it.
    """

    unbiased: bool = False
    deterministic: bool = False
    linear: bool = False
    layers: bool = False
    schedule: UpdateSchedule = UpdateSchedule()
    """When parameters are fitted to what was observed; never, unless a compressor says so."""
    samples: int = 0
    """Gradients of each worker that a fit uses."""
    fresh_samples: bool = False
    """Whether these are extra ones, rather than those of the last steps."""
    updates: int = 0
    """Fits so far."""
    number: int = 0
    """Among the compressors of a plan (`lqray.quantization.plan`); 0 for one that is alone."""

    def __init__(self, options: Any) -> None:
        """options: of the class `OPTIONS` beside the compressor."""
        self.options = options
        self.name = str(getattr(options, "method", type(self).__name__))
        """As it is called in YAML."""

    @property
    def unit(self) -> int:
        """See the class."""
        return 32

    def bind_to(self, sizes: Mapping[str, int]) -> None:  # noqa: B027
        """Say which parameters will be encoded, by their names, and how many coordinates each has, the same on all
        ranks; before anything is, and before a state is loaded."""

    def of_parameter(self, name: str) -> Compressor:
        """What encodes the parameter of this name: itself, but for a plan of several."""
        return self

    @abstractmethod
    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> Payload:
        """A payload of a tensor of any shape, float32, float16 or bfloat16.

        seed: unsigned 64-bit, different for every worker. offset: unsigned 64-bit, different for every tensor and step,
        the same on all ranks: what they draw alike follows from it. How many bytes come follows from the tensor's shape
        alone. Raises ValueError for a tensor of another kind.
        """

    def encode_at(self, tensor: Tensor, place: Place, *, seed: int, offset: int) -> Payload:
        """`encode` by one of several workers whose payloads are averaged, which is what every exchange calls. One whose
        workers shall draw their noise together overrides it; decoding is the same."""
        return self.encode(tensor, seed=seed, offset=offset)

    @abstractmethod
    def decode(self, payload: Payload) -> Tensor:
        """The (n,) tensor that a payload stands for, in the dtype of the tensor encoded. Raises ValueError for a
        payload of wrong length."""

    def decode_mean(self, payloads: Tensor, like: Payload) -> Tensor:
        """Mean of W decoded payloads, rows of (W, nbytes) uint8, added up in float32 in their order and cast once:
        (n,). like: one of them, for what their bytes mean."""
        like.check(payloads)
        total = torch.zeros(like.n, device=payloads.device)
        for row in payloads:
            total += self.decode(replace(like, buffer=row.clone(), dtype=torch.float32))
        return cast(total / len(payloads), like.dtype, like.offset)

    def mean_payload(self, payloads: Tensor, like: Payload) -> Payload:
        """Of a linear compressor: the payload that decodes to the mean of W payloads, rows of (W, nbytes), without
        rounding anew. Raises TypeError for one that is not linear."""
        raise TypeError(f"{self.name} is not linear: its payloads cannot be averaged before decoding")

    def rescaled(self, payload: Payload, corrected: Tensor, decoded: Tensor) -> Payload:
        """The payload of a tensor (n,), scaled so that it decodes nearer to it than `decoded` (n,), which it decodes to
        now: what `error_feedback: scaled` sends. Raises TypeError where payloads cannot be scaled."""
        raise TypeError(f"payloads of {self.name} cannot be scaled")

    @property
    def can_be_scaled(self) -> bool:
        """Whether it has `rescaled`."""
        return type(self).rescaled is not Compressor.rescaled

    def why_no_contraction(self) -> str | None:
        """The reason why E|decode(encode(x)) - x|^2 < |x|^2 can never hold, so that error feedback would grow without
        bound; None where it may well hold, which is then measured while training. By default the options say it."""
        said = getattr(self.options, "why_no_contraction", None)
        return said() if said else None

    @property
    def bounded(self) -> bool:
        """Whether the largest magnitude of what is lost contracts, whatever the energy does: then error feedback stays
        bounded although more energy may be lost, now and then, than there was."""
        return False

    def bias(self, tensor: Tensor) -> float:
        """||E[decode(encode(x))] - x|| / ||x||: 0 for an unbiased compressor or no tensor; for a deterministic one its
        error; NaN where it is not known."""
        if self.unbiased:
            return 0.0
        if not self.deterministic:
            return float("nan")
        exact = tensor.detach().reshape(-1).to(torch.float64)
        size = float(exact.norm())
        found = self.decode(self.encode(tensor, seed=0, offset=0)).to(torch.float64)
        return float((found - exact).norm()) / size if size else 0.0

    @property
    def adapts(self) -> bool:
        """Whether it is ever fitted to gradients, and can change thereby."""
        return False

    @property
    def fitted(self) -> bool:
        """Whether it has been fitted to something; one that does not adapt need not be."""
        return True

    def observe(self, tensor: Tensor, worker: int = 0) -> None:  # noqa: B027
        """Add a gradient of any shape to what the next fit is to. worker: which of those that share this process."""

    def statistics_table(self) -> Array:
        """What was observed as rows (K, C) float64, worker after worker, the form in which ranks exchange it."""
        return np.zeros((0, 1))

    def update_to(self, table: Array) -> None:  # noqa: B027
        """Fit the parameters to the rows (K, C) of all ranks and forget what was observed. Called on one rank; all
        others `adopt` what came of it."""

    def update_levels(self) -> bool:
        """Fit to what was observed here, as `update_to`. Returns whether anything changed."""
        before = self.parameters()
        self.update_to(self.statistics_table())
        return not np.array_equal(before, self.parameters(), equal_nan=True)

    def parameters(self) -> Array:
        """All that adapts, (P,) float64, P always the same; what `adopt` takes on another rank."""
        return np.zeros(0)

    def adopt(self, parameters: Array) -> None:  # noqa: B027
        """As `update_to`, of parameters that another rank has fitted."""

    def fingerprint(self) -> bytes:
        """Of what decoding depends on besides the options; ranks compare it with every exchange."""
        return self.parameters().tobytes()

    def tensors_on(self, device: torch.device) -> Sequence[Tensor]:
        """Tensors of its own that encoding and decoding read on a device, made ready there: a copy to a GPU makes the
        host wait, which the backward pass must not."""
        return ()

    def telemetry(self) -> dict[str, float]:
        """What else is worth a curve, under names such as quantizer/level/3."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """All that decides its next payloads, as tensors: loading it gives the same next step, bit for bit."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Restore what `state_dict` returned."""

    def regrouped(self, states: Sequence[Mapping[str, Tensor]], regrouping: Regrouping) -> dict[str, Tensor]:
        """To load here, of what `state_dict` returned on all ranks of another number of processes. Raises
        RegroupingError where these differ: one that keeps something of each worker overrides it."""
        return dict(alike(states, f"the state of {self.name}"))


def near_square(n: int) -> tuple[int, int]:
    """The shape of a matrix of n >= 1 coordinates whose sides differ least: what stands for a layer where there is
    none."""
    rows = next(rows for rows in range(math.isqrt(n), 0, -1) if n % rows == 0)
    return rows, n // rows
