"""Density of the normalized coordinates, levels and expected variance of quantization methods, as a figure.

python experiments/figures/levels.py --bucket-size 8192 --bits 3 --output levels.png
python experiments/figures/levels.py --sigma 0.02 --mean 0.001 --methods alq amq nuqsgd --output levels.svg

The coordinates are those of a bucket whose normalized coordinates are normal, truncated to [-1, 1].
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np

from lqray.quantization import TruncatedNormalMixture, solve_levels
from lqray.quantization.levels import Levels, exponential_levels, uniform_levels

matplotlib.use("Agg")
from matplotlib import pyplot

METHODS = {
    "qsgd": lambda distribution, bits: uniform_levels(bits),
    "nuqsgd": lambda distribution, bits: exponential_levels(bits),
    "amq": lambda distribution, bits: solve_levels(distribution, bits, "amq"),
    "alqg": lambda distribution, bits: solve_levels(distribution, bits, "alqg"),
    "alq": lambda distribution, bits: solve_levels(distribution, bits, "alq"),
}


def main() -> None:
    arguments = _arguments()
    sigma = arguments.bucket_size**-0.5 if arguments.sigma is None else arguments.sigma
    try:
        distribution = TruncatedNormalMixture([arguments.mean], [sigma])
        levels = {name: METHODS[name](distribution, arguments.bits) for name in arguments.methods}
    except ValueError as error:
        sys.exit(f"error: {error}")
    draw(distribution, levels, arguments.mean, sigma, arguments.output)
    for name, chosen in levels.items():
        nmse = distribution.expected_variance(chosen) * arguments.bucket_size
        print(f"{name:8} d * expected variance {nmse:10.4g}   levels {np.array2string(chosen, precision=4)}")
    print(f"written to {arguments.output}")


def draw(
    distribution: TruncatedNormalMixture, levels: dict[str, Levels], mean: float, sigma: float, output: Path
) -> None:
    """The density with each method's levels below it, where the mass is and over all of [-1, 1]; beside them what each
    coordinate contributes to the expected variance."""
    figure, (density, contribution) = pyplot.subplots(
        2, 1, figsize=(9, 7), sharex=True, layout="constrained", height_ratios=[1, 1]
    )
    r = np.unique(np.clip(np.concatenate([mean + sigma * np.linspace(-8, 8, 2001), [-1.0, 1.0]]), -1.0, 1.0))
    f = distribution.pdf(r)
    density.fill_between(r, f / f.max(), color="0.85", label="density (scaled)")
    density.set_ylim(-0.12 * len(levels) - 0.05, 1.1)
    for row, (name, chosen) in enumerate(levels.items()):
        line = density.plot(chosen, np.full(chosen.size, -0.12 * (row + 0.6)), "|", markersize=12, label=name)[0]
        above = np.clip(np.searchsorted(chosen, r, side="right"), 1, chosen.size - 1)
        psi = (chosen[above] - r) * (r - chosen[above - 1]) * f
        total = distribution.expected_variance(chosen)
        contribution.plot(r, psi, color=line.get_color(), label=f"{name}: {total:.3g}")
    reach = min(1.0, max(6 * sigma, 1e-6))
    density.set_xlim(mean - reach, mean + reach)
    outside = {name: int(np.sum(np.abs(chosen - mean) > reach)) for name, chosen in levels.items()}
    density.set_title(
        "levels under the density of normalized coordinates\noutside the frame: "
        + ", ".join(f"{name} {count}" for name, count in outside.items()),
        fontsize=10,
    )
    density.set_yticks([])
    density.legend(loc="upper right", fontsize=9)
    contribution.set_yscale("log")
    peak = max(line.get_ydata().max() for line in contribution.lines)
    contribution.set_ylim(peak * 1e-5, peak * 2)
    contribution.set_xlabel("normalized coordinate r")
    contribution.set_ylabel("(l$_{j+1}$ - r)(r - l$_j$) f(r)")
    contribution.legend(title="expected variance", loc="upper right", fontsize=9)
    figure.savefig(output, dpi=150)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw density, levels and expected variance of quantization methods.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--bits", type=int, default=3, choices=range(1, 9), help="bits per code")
    parser.add_argument("--bucket-size", type=int, default=8192, help="coordinates of a bucket, for d * variance")
    parser.add_argument("--sigma", type=float, help="of the coordinates; default: 1 / sqrt(bucket size)")
    parser.add_argument("--mean", type=float, default=0.0, help="of the coordinates")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="what to draw")
    parser.add_argument("--output", type=Path, default=Path("levels.png"), help="a .png, .svg or .pdf file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
