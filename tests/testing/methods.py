"""The methods that there are, by what they are."""

from lqray.experiment import names
from lqray.experiment.options.quantizer import (
    QUANTIZER,
    AdaptiveLevelsOptions,
    CompressorOptions,
    FixedLevelsOptions,
    QuantizerOptions,
)
from lqray.quantization.methods import Method, load_method

COMPRESSORS = [name for name in names.methods() if load_method(name) is not None]
"""What `Quantizer.create` makes."""
EXCHANGED = [name for name in COMPRESSORS if issubclass(QUANTIZER.get(name, FixedLevelsOptions), CompressorOptions)]
"""What lqray's own exchange sends; the others are torch's hooks."""
LEVELS = [name for name in COMPRESSORS if isinstance(load_method(name), Method)]
"""What rounds to levels."""
ADAPTIVE = [name for name in COMPRESSORS if issubclass(QUANTIZER.get(name, QuantizerOptions), AdaptiveLevelsOptions)]
"""What fits levels."""
SLOPED = ["dither", "slopes"]
"""What sends a phase."""
SPARSE = [name for name in EXCHANGED if "density" in QUANTIZER.get(name, FixedLevelsOptions).model_fields]
"""What sends few coordinates."""
REDUCTIONS = [name for name in names.reductions() if name != "hierarchical"]
"""What takes any number of processes; the other one, by hosts, has tests of its own, test_hierarchical.py."""


def payload_bytes(method: str, n: int, inner: str = "eden") -> int:
    """What n coordinates take at 3 bits, or what a method has instead, in buckets of 64: worked out here, by hand.
    inner: of `allocated`."""
    words, buckets = -(-n // 32), -(-n // 64)
    if method in ("eden", "drive"):
        return 8 + buckets * (4 + 8 * (3 if method == "eden" else 1)) if n else 0
    if method == "allocated":  # two bits a coordinate
        seed_or_phase = {"eden": 8, "rounding": 0}.get(inner, 4)
        head = seed_or_phase + 4 + 4 * -(-buckets // 4)
        if inner != "eden" and n < 4096:  # the head but for norms comes on top
            return head + 8 * max(buckets, -(-(2 * n - 8 * buckets) // 64)) if n else 0
        return head + 8 * max(buckets, (2 * n - 8 * head) // 64) if n else 0
    if method in ("mxfp4", "mxfp8"):
        return 4 * -(-words // 4) + 4 * (4 if method == "mxfp4" else 8) * words
    planes = {"terngrad": 2, "signsgd": 1, "int8": 8}.get(method, 3)
    return 4 * buckets + 4 * planes * words + (4 if method in SLOPED else 0)
