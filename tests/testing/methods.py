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
