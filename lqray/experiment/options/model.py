"""Options of models, one class per name."""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from lqray.experiment.options.own import OwnPart
from lqray.experiment.options.section import MOST_UNITS, MOST_VOCABULARY, MOST_WEIGHTS, Units, Variant, Word


class ModelOptions(Variant):
    """A model: a module of training/models. How it is computed is part of the trial: it changes the last bits."""

    name: str
    """Which family of models."""
    channels_last: bool = False
    """Images and convolutions in channels-last memory order."""
    compile: bool = False
    """Compile the model with torch.compile, which takes a while at the start and needs a C++ compiler."""
    amp: Literal["none", "bf16"] = "none"
    """bf16: forward passes in bfloat16 where torch's autocast deems it safe; weights and gradients stay float32."""
    dtype: Literal["float32", "bf16"] = "float32"
    """bf16: parameters, activations and gradients in bfloat16, also as they are exchanged; the optimizer steps along
    float32 copies of the parameters. BatchNorm, which needs its running statistics in float32, stays float32 whole."""


def _weights_fit(key: str, one: int, two: int) -> None:
    if one * two > MOST_WEIGHTS:
        raise ValueError(f"{key} whose weights are at most {MOST_WEIGHTS:,}; found {one} x {two} of a layer")


class CnnOptions(ModelOptions):
    """Two 3x3 convolutions with max pooling, then two fully connected layers."""

    channels: Annotated[tuple[Units, Units], Field(strict=False)] = (16, 32)
    """Output channels of the two convolutions."""
    hidden: int = Field(default=64, ge=1, le=MOST_UNITS)
    """Units of the hidden fully connected layer."""

    @model_validator(mode="after")
    def _fits(self) -> CnnOptions:
        one, two = self.channels
        _weights_fit("channels", one, 9 * two)
        _weights_fit("hidden, of as many channels,", two, self.hidden)
        return self


class MlpOptions(ModelOptions):
    """Fully connected layers with ReLU between them."""

    layers: Annotated[tuple[Units, ...], Field(strict=False, max_length=1000)] = (64,)
    """Units of each hidden layer."""

    @model_validator(mode="after")
    def _fits(self) -> MlpOptions:
        for one, two in itertools.pairwise(self.layers):
            _weights_fit("layers", one, two)
        return self


def _resnet_depth(depth: int) -> int:
    if not 8 <= depth <= 1202 or (depth - 2) % 6:
        raise ValueError("6 n + 2: 8, 14, 20, 26, 32, 38, 44, 50, 56, ..., 110, ..., 1202")
    return depth


def _wide_resnet_depth(depth: int) -> int:
    if not 10 <= depth <= 1204 or (depth - 4) % 6:
        raise ValueError("6 n + 4: 10, 16, 22, 28, 34, 40, ..., 1204")
    return depth


class ResnetOptions(ModelOptions):
    """Residual network for small images: 16, 32, 64 channels, option-A shortcuts (He et al. 2016)."""

    depth: Annotated[int, AfterValidator(_resnet_depth)] = 20
    """Layers with weights: 6 n + 2 for n blocks a stage."""


class WideResnetOptions(ModelOptions):
    """Wide residual network (Zagoruyko and Komodakis 2016)."""

    depth: Annotated[int, AfterValidator(_wide_resnet_depth)] = 28
    """Layers with weights: 6 n + 4 for n blocks a stage."""
    width: int = Field(default=10, ge=1, le=1024)
    """Times 16, 32 and 64 channels."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations dropped between a block's convolutions."""


class TorchvisionOptions(ModelOptions):
    """A classifier of torchvision.models."""

    architecture: Word
    """Its name there, such as resnet18."""
    pretrained: bool = False
    """Start from torchvision's weights, which it downloads."""
    small_images: bool = False
    """Of a ResNet: begin with a 3x3 convolution of stride 1 and no pooling, as is usual for images of 32x32 pixels (He
    et al. 2016, section 4.2), where it has a 7x7 one of stride 2."""


class GptOptions(ModelOptions):
    """A transformer decoder that predicts the next token, pre-norm, with causal attention."""

    style: Literal["gpt2", "llama"] = "gpt2"
    """gpt2: LayerNorm, learned positions, GELU (Radford et al. 2019). llama: RMSNorm, rotary positions, SwiGLU
    (Touvron et al. 2023)."""
    layers: int = Field(default=4, ge=1, le=1000)
    """Blocks, each of attention and a perceptron."""
    heads: int = Field(default=4, ge=1, le=1024)
    """Of attention; they share the width evenly."""
    width: int = Field(default=256, ge=1, le=2**16)
    """Of the residual stream."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations dropped: of the embedded tokens, of attention's weights, and of what each layer adds."""
    bias: bool | None = None
    """Biases in fully connected layers and norms; null: as the style has it, in gpt2 and not in llama."""
    tied: bool = True
    """The output layer's weight is that of the embedding."""
    vocabulary: int | None = Field(default=None, ge=2, le=MOST_VOCABULARY)
    """Rows of the embedding, and logits: at least as many as the data have tokens, a multiple of 64 being faster on
    GPUs; null: as many."""

    @model_validator(mode="after")
    def _fits(self) -> GptOptions:
        if self.width % self.heads:
            raise ValueError(f"a width that the heads share evenly; found {self.width} for {self.heads} heads")
        if self.style == "llama" and self.width // self.heads % 2:
            raise ValueError(
                "with rotary positions an even width of each head; found "
                f"{self.width} / {self.heads} = {self.width // self.heads}"
            )
        _weights_fit("vocabulary and width", self.vocabulary or 1, self.width)
        return self


class OwnModelOptions(OwnPart, ModelOptions):
    """A model of a user's own: `build(options, shape, classes) -> nn.Module`."""

    kind: ClassVar[str] = "models"


MODEL: dict[str, type[ModelOptions]] = {
    "cnn": CnnOptions,
    "gpt": GptOptions,
    "mlp": MlpOptions,
    "resnet": ResnetOptions,
    "torchvision": TorchvisionOptions,
    "wide_resnet": WideResnetOptions,
}
