"""How a DDP bucket is cut into tensors that are quantized and tensors that stay in full precision."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.futures import Future

from lqray.communication import streams
from lqray.communication.memory import Key
from lqray.experiment.options.budget import check_patterns, no_such_parameter
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Compressor

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


class Bucket(Protocol):
    """What is exchanged at a time, as torch's GradBucket has it."""

    def index(self) -> int:
        """Of the buckets that may be exchanged in a step, which."""
        ...

    def is_last(self) -> bool:
        """Whether no other of the step follows."""
        ...

    def buffer(self) -> Tensor:
        """All of it, (n,)."""
        ...

    def gradients(self) -> list[Tensor]:
        """Views of the buffer, one for each parameter."""
        ...

    def parameters(self) -> list[Tensor]:
        """What they are the gradients of."""
        ...


@dataclass(frozen=True)
class FlatBucket:
    """A bucket that no DDP has made: `held`, tensors of the parameters' shapes, one after the other."""

    number: int
    last: bool
    owners: Sequence[Tensor]
    held: Sequence[Tensor]

    def index(self) -> int:
        """See `Bucket.index`."""
        return self.number

    def is_last(self) -> bool:
        """See `Bucket.is_last`."""
        return self.last

    @cached_property
    def _flat(self) -> Tensor:
        return torch.cat([each.reshape(-1) for each in self.held])

    def buffer(self) -> Tensor:
        """See `Bucket.buffer`: a copy."""
        return self._flat

    def gradients(self) -> list[Tensor]:
        """See `Bucket.gradients`."""
        parts = self._flat.split([each.numel() for each in self.held])
        return [part.view(each.shape) for part, each in zip(parts, self.held, strict=True)]

    def parameters(self) -> list[Tensor]:
        """See `Bucket.parameters`."""
        return list(self.owners)


@dataclass(frozen=True)
class Span:
    """Coordinates [begin, end) of a DDP bucket: those of the parameter `name`. shape: of the parameter, where its
    coordinates lie row-major."""

    name: str
    begin: int
    end: int
    shape: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """How many coordinates."""
        return self.end - self.begin


@dataclass(frozen=True)
class Cut:
    """tensors: what is quantized, each of one or more neighbouring or distant spans, in order. skipped: what is not."""

    tensors: Sequence[Sequence[Span]]
    skipped: Sequence[Span]
    coordinates: int

    def take(self, flat: Tensor) -> list[Tensor]:
        """The tensors of a bucket (n,): views where their spans are neighbours."""
        return [_joined(flat, spans) for spans in self.tensors]

    def take_skipped(self, flat: Tensor) -> Tensor:
        """The skipped coordinates of a bucket, one after the other."""
        return _joined(flat, self.skipped)

    def put(self, tensors: Sequence[Tensor], skipped: Tensor | None) -> Tensor:
        """The bucket (n,) of its tensors and its skipped coordinates: the inverse of `take`."""
        if not self.skipped and len(tensors) == 1:
            return tensors[0]
        first = tensors[0] if tensors else skipped
        assert first is not None
        flat = first.new_empty(self.coordinates)
        parts = [(spans, tensor) for spans, tensor in zip(self.tensors, tensors, strict=True)]
        if self.skipped:
            assert skipped is not None
            parts.append((self.skipped, skipped))
        for spans, tensor in parts:
            begin = 0
            for span in spans:
                flat[span.begin : span.end] = tensor[begin : begin + span.size]
                begin += span.size
        return flat

    def put_when_done(
        self, tensors: Future[list[Tensor]] | None, skipped: Future[Tensor] | None, device: torch.device
    ) -> Future[Tensor]:
        """`put` of futures; None for what there is nothing of."""
        if tensors and not skipped:
            return tensors.then(lambda done: self.put(done.value(), None))
        if skipped and not tensors:
            return skipped.then(lambda done: self.put([], done.value()))
        assert tensors
        assert skipped
        return streams.after_all([tensors, skipped], self.put, device)


def keys_of(spans: Sequence[Span]) -> list[Key]:
    """What a tensor of these spans holds."""
    return [(span.name, span.size) for span in spans]


def skipped_names(module: nn.Module, options: ExchangeOptions) -> frozenset[str]:
    """Names of parameters that `exchange.skip` and `exchange.skip_below` keep in full precision. Raises ValueError for
    a pattern that no parameter has: `bias` and `norm` may be absent, other patterns are likely misspelt."""
    names = [name for name, _ in module.named_parameters()]
    for pattern in options.skip:
        if pattern not in ("bias", "norm") and not any(fnmatchcase(name, pattern) for name in names):
            raise no_such_parameter("exchange.skip", pattern, names, "bias, norm")
    norms = {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if isinstance(part, _NORMS)
        for name, _ in part.named_parameters(recurse=False)
    }

    def skips(name: str, size: int) -> bool:
        kinds = {"bias": name.rpartition(".")[2] == "bias", "norm": name in norms}
        return size < options.skip_below or any(
            kinds.get(pattern, False) or fnmatchcase(name, pattern) for pattern in options.skip
        )

    return frozenset(name for name, parameter in module.named_parameters() if skips(name, parameter.numel()))


def quantized_sizes(module: nn.Module, options: ExchangeOptions, bits: object = None) -> dict[str, int]:
    """Of the parameters that are trained and not skipped: names to coordinates. Raises ValueError as `skipped_names`,
    and for a pattern of `bits` (`lqray.experiment.options.budget`) that no parameter has."""
    skipped = skipped_names(module, options)
    check_patterns(bits, [name for name, _ in module.named_parameters()])
    return {
        name: parameter.numel()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and name not in skipped
    }


def check_parameters(module: nn.Module) -> None:
    """Raise ValueError, which names the parameter, for gradients that are not quantized: sparse ones, and those of
    another dtype than float32, float16 or bfloat16."""
    refuse_sparse(module)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(
                f"the parameter {name} is {parameter.dtype}; allowed: float32, float16 or bfloat16, in which gradients "
                "are quantized (`model.float()`), or the method full_precision"
            )


def refuse_sparse(module: nn.Module) -> None:
    """Raise ValueError, which names the parameter, for an embedding whose gradients are sparse."""
    for prefix, part in module.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse and part.weight.requires_grad:
            raise ValueError(
                f"the parameter {prefix}{'.' if prefix else ''}weight has sparse gradients, of an embedding with "
                "sparse=True; allowed: dense ones. Make the embedding with sparse=False, or train with the method "
                "full_precision"
            )


def encoded_together(names: Sequence[str], compressor: Compressor, by_layer: bool) -> list[list[int]]:
    """Which of the parameters of these names, by their places, are encoded as one tensor: each alone with `by_layer`,
    else all of one compressor (`Compressor.of_parameter`)."""
    if by_layer:
        return [[place] for place in range(len(names))]
    groups: dict[int, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(compressor.of_parameter(name).number, []).append(place)
    return list(groups.values())


def cut_bucket(
    bucket: Bucket,
    names: Mapping[Tensor, str],
    skipped: frozenset[str],
    compressor: Compressor,
    by_layer: bool,
) -> Cut:
    """names: of the model's parameters. compressor, by_layer: as of `encoded_together`."""
    flat = bucket.buffer()
    start = flat.storage_offset()
    spans = []
    for gradient, parameter in zip(bucket.gradients(), bucket.parameters(), strict=True):
        begin = int(gradient.storage_offset() - start)
        shape = tuple(gradient.shape) if gradient.is_contiguous() else None
        spans.append(Span(names[parameter], begin, begin + gradient.numel(), shape))
    kept = [span for span in spans if span.name not in skipped]
    groups = encoded_together([span.name for span in kept], compressor, by_layer)
    return Cut(
        [[kept[place] for place in group] for group in groups],
        [span for span in spans if span.name in skipped],
        flat.numel(),
    )


def flat_like(bucket: Bucket, gradients: Mapping[Tensor, Tensor | None]) -> Tensor:
    """Gradients of a bucket's parameters, None for zeros, laid out as in the bucket: (n,)."""
    buffer = bucket.buffer()
    flat = torch.zeros_like(buffer)
    for view, parameter in zip(bucket.gradients(), bucket.parameters(), strict=True):
        gradient = gradients[parameter]
        if gradient is not None:
            offset = view.storage_offset() - buffer.storage_offset()
            flat.as_strided(view.size(), view.stride(), offset).copy_(gradient)
    return flat


def _joined(flat: Tensor, spans: Sequence[Span]) -> Tensor:
    if all(one.end == after.begin for one, after in itertools.pairwise(spans)):
        return flat[spans[0].begin : spans[-1].end] if spans else flat[:0]
    return torch.cat([flat[span.begin : span.end] for span in spans])
