"""Accuracy and variance over the iterations of `fashion_mnist.yaml`, from its recorded runs: a figure and a table.

    lqray run experiments/fashion_mnist.yaml --launcher inline
    python experiments/figures/fashion_mnist.py --uri sqlite:///lqray.db

Writes experiments/results/fashion_mnist.png, prints the table.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from mlflow import MlflowClient

RESULTS = Path(__file__).resolve().parent.parent / "results"
# Okabe and Ito's colours, told apart by the colour-blind.
COLOURS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#888888"]
Curves = dict[str, list[list[tuple[int, float]]]]


def read(uri: str, metric: str) -> Curves:
    """Curves [(iteration, value)] of each run of a method, by method, in the order in which they ran."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("fashion-mnist")
    if experiment is None:
        raise SystemExit(f"no experiment fashion-mnist in {uri}; run experiments/fashion_mnist.yaml first")
    runs = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'", order_by=["start_time"])
    curves: Curves = {}
    for run in runs:
        history = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric))
        curves.setdefault(run.data.tags["lqray.method"], []).append(list(dict(history).items()))
    return curves


def draw(accuracy: Curves, variance: Curves) -> None:
    """Two panels: accuracy; variance of the quantized gradient by that of the exact one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for colour, (method, runs) in zip(COLOURS, accuracy.items(), strict=False):
        for axes, curves in ((left, runs), (right, variance.get(method, []))):
            for index, curve in enumerate(curve for curve in curves if curve):
                steps, values = zip(*curve, strict=True)
                axes.plot(steps, values, color=colour, label=None if index else method, linewidth=1.4)
    left.set(xlabel="iteration", ylabel="test accuracy", ylim=(0.6, 0.95))
    right.set(xlabel="iteration", ylabel="variance, quantized / exact", yscale="log")
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(RESULTS / "fashion_mnist.png", dpi=150)


def table(accuracy: Curves, variance: Curves, bits: Curves) -> str:
    """Markdown: final accuracy and the median variance ratio over the run."""
    lines = ["| method | runs | bits per coordinate | test accuracy | variance, quantized / exact (median) |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for method, runs in accuracy.items():
        final = [curve[-1][1] for curve in runs]
        spread = f" ± {100 * statistics.stdev(final):.2f}" if len(final) > 1 else ""
        ratios = [value for curve in variance.get(method, []) for _, value in curve]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
        width = bits[method][0][-1][1]
        lines.append(
            f"| {method} | {len(runs)} | {width:.3f} | {100 * statistics.fmean(final):.2f}{spread} | {ratio} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uri", default="sqlite:///lqray.db", help="where the runs are recorded")
    uri = parser.parse_args().uri
    accuracy, variance = read(uri, "test/accuracy"), read(uri, "quantizer/variance_ratio")
    RESULTS.mkdir(exist_ok=True)
    draw(accuracy, variance)
    print(table(accuracy, variance, read(uri, "wire/bits_per_coordinate")))


if __name__ == "__main__":
    main()
