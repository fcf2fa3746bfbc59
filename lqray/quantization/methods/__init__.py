"""One module per method; its name is the method's name in YAML. Each defines METHOD: a class of `Compressor`s, made of
the method's options; a `Method` of levels, which a `Quantizer` rounds to; or None where nothing is compressed, or by
torch's own hook."""

from lqray.quantization.method import Method, exponential, load_method, uniform

__all__ = ["Method", "exponential", "load_method", "uniform"]
