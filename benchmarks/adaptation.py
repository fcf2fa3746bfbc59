"""Whether levels adapt to gradients: python benchmarks/adaptation.py (a minute; captures gradients of two networks).

Under l2 norms ALQ's levels are those of a normal of deviation 1/sqrt(d), whatever the gradients; under linf norms
levels follow them. 3 bits, whole buckets of 8192. beyond: the share of the coordinates beyond the last inner level, and
of the expected error that is theirs. half_distances: of each inner level to its mirror image, halved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from gradients import NETWORKS, Gradients, captured
from numpy.typing import NDArray
from record import RESULTS, record

from lqray.quantization import Quantizer

matplotlib.use("Agg")
from matplotlib import pyplot

BUCKET, BITS, AT = 8192, 3, [10, 200]
METHODS = ("alq", "optimal_inf")
TITLES = {
    "alq": "l2 norms, alq: in units of 1/$\\sqrt{d}$",
    "optimal_inf": "linf norms, optimal_inf",
}
COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7")


def normalized(gradients: torch.Tensor, norm: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of whole buckets over their norms, (buckets, d), and the norms, (buckets, 1)."""
    vectors = gradients.reshape(-1, gradients.shape[-1])
    rows = vectors[:, : vectors.shape[1] // BUCKET * BUCKET].reshape(-1, BUCKET).double().numpy()
    norms = np.linalg.norm(rows, axis=1, keepdims=True) if norm == "l2" else np.abs(rows).max(axis=1, keepdims=True)
    return rows / norms, norms


def fitted(method: str, gradients: Gradients) -> Quantizer:
    """With levels fitted to whole buckets."""
    quantizer = Quantizer.create(method, bits=BITS, bucket_size=BUCKET)
    for vector in gradients.fit.reshape(-1, gradients.fit.shape[-1]):
        quantizer.observe(vector[: vector.numel() // BUCKET * BUCKET])
    quantizer.update_levels()
    assert isinstance(quantizer, Quantizer)
    return quantizer


def figures(method: str, gradients: Gradients) -> dict[str, Any]:
    """Levels, and what they lose of held-out gradients."""
    quantizer = fitted(method, gradients)
    levels = quantizer.exact_levels
    r, norms = normalized(gradients.held, quantizer.coding.norm)
    above = np.clip(np.searchsorted(levels, r, side="right"), 1, levels.size - 1)
    errors = (levels[above] - r) * (r - levels[above - 1]) * norms**2
    beyond = (r < levels[1]) | (r > levels[-2])
    return {
        "levels": levels.tolist(),
        "half_distances": (0.5 * (levels - levels[::-1]))[levels.size // 2 : -1].tolist(),
        "nmse": float(errors.sum() / np.square(r * norms).sum()),
        "beyond": {"coordinates": float(beyond.mean()), "error": float(errors[beyond].sum() / errors.sum())},
    }


def draw(sets: Sequence[Gradients], found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """For each method the density of the normalized coordinates, and the fitted levels, a row for each set."""
    figure, axes = pyplot.subplots(2, 2, figsize=(9.6, 5.4), sharex="col", layout="constrained", height_ratios=[3, 1.4])
    for column, method in enumerate(METHODS):
        density, rows = axes[:, column]
        scale = BUCKET**0.5 if method == "alq" else 1.0
        edges = np.linspace(-12, 12, 121) if method == "alq" else np.linspace(-1, 1, 121)
        middles = 0.5 * (edges[1:] + edges[:-1])
        if method == "alq":
            density.plot(
                middles, np.exp(-0.5 * middles**2) / np.sqrt(2 * np.pi), "k--", label="what alq fits to: normal"
            )
        for number, gradients in enumerate(sets):
            r, _ = normalized(gradients.held, "l2" if method == "alq" else "linf")
            counts, _ = np.histogram(r.reshape(-1) * scale, edges)
            density.plot(middles, counts / (r.size * np.diff(edges)), color=COLOURS[number], label=gradients.name)
            levels = scale * np.array(found[gradients.name][method]["levels"])
            rows.plot(
                levels, np.full(levels.size, -number), "|", color=COLOURS[number], markersize=11, markeredgewidth=2
            )
        density.set(yscale="log", ylim=(1e-5, 30 if method != "alq" else 5), title=TITLES[method])
        rows.set(yticks=[], ylim=(0.5 - len(sets), 0.5), xlim=(edges[0], edges[-1]), xlabel="normalized coordinate")
    axes[0][0].set_ylabel("density")
    axes[1][0].set_ylabel("levels")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    figure.savefig(RESULTS / "adaptation.png", dpi=110)


def main() -> None:
    """The figure, and its numbers."""
    sets = [one for name in NETWORKS for one in captured(name, AT, samples=4)]
    found = {one.name: {method: figures(method, one) for method in METHODS} for one in sets}
    draw(sets, found)

    def spread(method: str) -> float:
        """Largest ratio of one set's half distance to another's."""
        halves = np.array([found[one.name][method]["half_distances"] for one in sets])
        return float((halves.max(axis=0) / halves.min(axis=0)).max())

    ratios = {method: spread(method) for method in METHODS}
    record(
        "adaptation",
        {"largest_ratio_of_half_distances": ratios, "sets": found},
        {
            "alq's levels differ by less than 1% between networks and steps": ratios["alq"] < 1.01,
            "optimal_inf's differ by more than 30%": ratios["optimal_inf"] > 1.3,
        },
    )


if __name__ == "__main__":
    main()
