"""Levels: how good, beside the original implementation and a brute-force optimum, and how fast.

python benchmarks/levels.py   (single-threaded; about ten seconds)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import median_ratio, median_seconds, record

from lqray.quantization import Quantizer, TruncatedNormalMixture, solve_levels
from lqray.quantization.dynamic_program import Points, choose_levels
from lqray.quantization.levels import exponential_levels
from lqray.quantization.statistics import bucket_statistics

ORIGINAL = Path(__file__).parent.parent / "tests" / "quantization" / "original_levels.json"


def mixture(components: int) -> TruncatedNormalMixture:
    """Buckets of 8192 like those of a network's gradient: deviations within 20% of 1/sqrt(8192), small means."""
    random = np.random.default_rng(components)
    sigmas = 8192**-0.5 * np.exp(random.normal(0.0, 0.2, components))
    return TruncatedNormalMixture(random.normal(0.0, 1e-3, components), sigmas, random.random(components) + 0.1)


def brute_force(distribution: TruncatedNormalMixture, bits: int) -> float:
    """Expected variance of the best levels among 4,000 points, dense where the distribution is."""
    spread = float(np.sqrt(distribution.weights @ (distribution.sigmas**2 + distribution.means**2)))
    core = np.sinh(np.linspace(-1.0, 1.0, 4001) * np.arcsinh(1.0 / spread)) * spread
    edges = np.unique(np.concatenate([[-1.0], core[1:-1], [1.0]]))
    moments, left = distribution.moments(edges), edges[:-1]
    around_zero = (
        moments.mass,
        moments.first + left * moments.mass,
        moments.second + 2 * left * moments.first + left**2 * moments.mass,
    )
    points = Points(edges, *(np.concatenate([[0.0], np.cumsum(m)]) for m in around_zero))
    return distribution.expected_variance(edges[choose_levels(points, 2**bits)])


def beside_the_original() -> dict[str, Any]:
    """Expected variance and seconds over all recorded runs of the original solver."""
    excess, better, faster, exact = [], [], [], []
    for case in json.loads(ORIGINAL.read_text())["cases"]:
        weighted = TruncatedNormalMixture(case["means"], case["sigmas"], case["norms"])
        pooled = TruncatedNormalMixture([case["nl_mean"]], [case["nl_sigma"]])
        bits = case["bits"]
        for name, result in case["results"].items():
            distribution = weighted if "_nb" in name else pooled
            if "levels" in result:
                theirs = distribution.expected_variance(result["levels"])
                ours = distribution.expected_variance(solve_levels(distribution, bits))
            elif "multiplier" in result:
                theirs = distribution.expected_variance(exponential_levels(bits, result["multiplier"]))
                ours = distribution.expected_variance(solve_levels(distribution, bits, "amq"))
            else:
                continue  # the original died on it
            excess.append(ours / theirs - 1)
            better.append(theirs / ours)
        descents = [r["seconds"] for name, r in case["results"].items() if "_gd_" in name]
        faster.append(sum(descents) / median_seconds(lambda d=weighted, b=bits: solve_levels(d, b)))
        exact.append(weighted.expected_variance(solve_levels(weighted, bits)) / brute_force(weighted, bits) - 1)
    return {
        "compared": len(excess),
        "largest_relative_excess_over_the_original": max(excess),
        "original_over_ours_median": float(np.median(better)),
        "original_over_ours_largest": max(better),
        "times_faster_least": min(faster),
        "times_faster_median": float(np.median(faster)),
        "largest_relative_excess_over_brute_force": max(exact),
    }


def nmse_of_alq_inf(bucket_size: int) -> float:
    """Measured on 512 Gaussian buckets, levels fitted to them."""
    x = torch.randn(512 * bucket_size, generator=torch.Generator().manual_seed(0))
    quantizer = Quantizer.create("alq_inf", bucket_size=bucket_size, components=350)
    quantizer.observe(x)
    quantizer.update_levels()
    error = quantizer.decode(quantizer.encode(x, seed=1, offset=0)) - x
    return float(error.double().square().sum() / x.double().square().sum())


def main() -> None:
    torch.set_num_threads(1)
    original = beside_the_original()
    normal = {d: TruncatedNormalMixture([0.0], [d**-0.5]) for d in (8192, 16384)}
    nmse = {
        f"{method}_{d}": d * normal[d].expected_variance(solve_levels(normal[d], 3, method))
        for method in ("alq", "amq")
        for d in (8192, 16384)
    }
    nmse["alq_inf_8192_measured"] = nmse_of_alq_inf(8192)
    excess = {
        bits: mixture(20).expected_variance(solve_levels(mixture(20), bits)) / brute_force(mixture(20), bits) - 1
        for bits in range(2, 9)
    }
    many, fifty = mixture(350), mixture(50)
    seconds = {
        "components_350_bits_3": median_seconds(lambda: solve_levels(many, 3)),
        "components_350_bits_4": median_seconds(lambda: solve_levels(many, 4)),
        "components_350_bits_8": median_seconds(lambda: solve_levels(many, 8)),
        "components_350_bits_3_amq": median_seconds(lambda: solve_levels(many, 3, "amq")),
        "components_50_bits_4": median_seconds(lambda: solve_levels(fifty, 4)),
    }
    # Recorded with 20 components; with 50 the original takes longer.
    recorded = max(
        sum(r["seconds"] for name, r in case["results"].items() if "_gd_" in name)
        for case in json.loads(ORIGINAL.read_text())["cases"]
        if case["bits"] == 4 and case["bucket_size"] == 8192
    )
    x = torch.randn(25_000_000)
    passes = {
        norm: median_ratio(lambda n=norm: bucket_statistics(x, 8192, n), lambda: torch.linalg.vector_norm(x))
        for norm in ("l2", "linf")
    }
    record(
        "levels",
        {
            "original": original,
            "nmse_3_bits": nmse,
            "relative_excess_over_brute_force_by_bits": excess,
            "seconds": seconds,
            "times_faster_components_50_bits_4_than_the_original_with_20": recorded / seconds["components_50_bits_4"],
            "statistics_of_25_million_over_one_vector_norm": passes,
        },
        {
            "never above the original's levels by more than 1e-6": original["largest_relative_excess_over_the_original"]
            <= 1e-6,
            "within 1e-6 of brute force, 2 to 4 bits": max(excess[b] for b in (2, 3, 4)) <= 1e-6,
            "within 1e-4 of brute force, 5 to 8 bits": max(excess[b] for b in (5, 6, 7, 8)) <= 1e-4,
            "alq 0.223 and 0.229": [round(nmse["alq_8192"], 3), round(nmse["alq_16384"], 3)] == [0.223, 0.229],
            "amq 0.527 and 0.593": [round(nmse["amq_8192"], 3), round(nmse["amq_16384"], 3)] == [0.527, 0.593],
            "alq_inf 0.116 to 0.120": 0.116 <= round(nmse["alq_inf_8192_measured"], 3) <= 0.120,
            "350 components, 3 bits: under 10 ms": seconds["components_350_bits_3"] < 0.010,
            "350 components, 8 bits: under 200 ms": seconds["components_350_bits_8"] < 0.200,
            "50 components: 1,000 times faster than the original": recorded / seconds["components_50_bits_4"] > 1000,
            "statistics within 3 times a vector_norm": max(passes.values()) <= 3,
        },
    )


if __name__ == "__main__":
    main()
