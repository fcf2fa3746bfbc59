"""What every compressor makes of real gradients: python benchmarks/compressors.py [--missing | FILE of `lqray capture`]

--missing: only gradients that the results lack, beside the rows that there are, whose times stand for all. Without
files, gradients of a ResNet-8, an MLP and a byte transformer are captured first; all takes about two minutes.
Of every method of lqray's, at every number of bits, with every bucket size and inner variant that it has:

bits: sent for each coordinate, all bytes of a payload counted. nmse: of one worker's vector, of gradients that it was
not fitted to. mean_nmse: of the mean of four workers, over that mean's energy. entropy_bits: of the codes.
encode_ns, decode_ns: for each coordinate, two threads, of a vector of two million; the least of seven times, since
others may use the machine. clone_ns: of tensor.clone() of that vector, likewise.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradients import NETWORKS, TRANSFORMER, Gradients, block_gaussian_nmse, captured, from_file, of_transformer
from pydantic.fields import FieldInfo
from record import RESULTS, record
from torch import Tensor

from lqray.experiment import names
from lqray.experiment.options.quantizer import QUANTIZER, CompressorOptions, FixedLevelsOptions
from lqray.quantization import Compressor, Payload, Quantizer
from lqray.quantization.methods import load_method
from lqray.quantization.place import Place
from lqray.reporting.methods import in_order, look

WORKERS = 4
AT = [200]
TRANSFORMER_AT = 1000
TIMED = 2**21
TIMES = {"encode_ns", "decode_ns"}
SWEPT: dict[str, Sequence[Any]] = {
    "bits": (1, 2, 3, 4),
    "bucket_size": (512, 8192),
    "density": (0.01, 0.03, 0.1),
    "exponent": (1.0, 0.5),
}
"""Values of options that several methods have; fractional bits for methods that take them, and the bucket size that is
a method's default."""
FRACTIONS = (1.5, 2.5)
CHOICES = ("inner", "solver", "slope")
"""Options of which every value is a variant."""
LEFT_OUT = {"solver": {"coordinate"}}
"""It ends where newton does."""
FLOOR, CEILING = 5e-4, 4.0


@dataclass(frozen=True)
class Variant:
    """A method and options of it."""

    method: str
    options: dict[str, Any]

    def create(self) -> Compressor:
        """A new one."""
        return Quantizer.create(self.method, **self.options)


def variants(methods: Sequence[str] | None = None) -> Iterator[Variant]:
    """Of all methods whose payloads lqray exchanges, or of those of a list."""
    for method in methods or in_order(names.methods()):
        options = QUANTIZER.get(method, FixedLevelsOptions)
        if load_method(method) is None or not issubclass(options, CompressorOptions):
            continue
        axes = {name: _values(name, field) for name, field in options.model_fields.items()}
        axes = {name: values for name, values in axes.items() if values}
        for chosen in product(*axes.values()):
            yield Variant(method, dict(zip(axes, chosen, strict=True)))


def _values(option: str, field: FieldInfo) -> Sequence[Any]:
    if option in CHOICES:
        return [one for one in typing.get_args(field.annotation) if one not in LEFT_OUT.get(option, ())]
    values = SWEPT.get(option, ())
    if option == "bits" and field.annotation is float:
        return (*values, *FRACTIONS)
    return sorted({*values, field.default}) if option == "bucket_size" else values


def measured(compressor: Compressor, gradients: Gradients) -> dict[str, float]:
    """What it makes of held-out gradients after it was fitted to others."""
    for sample in gradients.fit:
        for worker, vector in enumerate(sample):
            for tensor in tensors(compressor, vector, gradients.shapes):
                compressor.observe(tensor, worker)
    compressor.update_levels()
    errors, energy, mean_errors, mean_energy, sent, entropy = 0.0, 0.0, 0.0, 0.0, 0, 0.0
    for number, sample in enumerate(gradients.held):
        payloads = [
            encoded(compressor, vector, gradients.shapes, worker, number) for worker, vector in enumerate(sample)
        ]
        decoded = torch.stack([torch.cat([compressor.decode(part) for part in parts]) for parts in payloads])
        errors += float((decoded - sample).double().square().sum())
        energy += float(sample.double().square().sum())
        mean = torch.cat([_mean(compressor, parts) for parts in zip(*payloads, strict=True)])
        exact = sample.double().mean(dim=0)
        mean_errors += float((mean.double() - exact).square().sum())
        mean_energy += float(exact.square().sum())
        sent += sum(part.nbytes for parts in payloads for part in parts)
        entropy += sum(part.entropy_bits() * part.n for parts in payloads for part in parts)
    coordinates = gradients.held.numel()
    return {
        "bits": 8 * sent / coordinates,
        "nmse": errors / energy,
        "mean_nmse": mean_errors / mean_energy,
        "entropy_bits": entropy / coordinates,
    }


def tensors(compressor: Compressor, vector: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """A gradient as the exchange would give it."""
    if not compressor.layers:
        return [vector]
    parts = vector.split([int(np.prod(shape)) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def encoded(
    compressor: Compressor, vector: Tensor, shapes: list[tuple[int, ...]], worker: int, number: int
) -> list[Payload]:
    """Payloads of a worker's gradient, its number that of the step."""
    parts, place = enumerate(tensors(compressor, vector, shapes)), Place(worker, WORKERS)
    return [compressor.encode_at(part, place, seed=1 + worker, offset=number << 20 | layer) for layer, part in parts]


def _mean(compressor: Compressor, payloads: tuple[Payload, ...]) -> Tensor:
    return compressor.decode_mean(torch.stack([one.buffer for one in payloads]), payloads[0])


def timed(compressor: Compressor, vector: Tensor) -> dict[str, float]:
    """Nanoseconds for each coordinate of a vector (n,)."""
    payload = compressor.encode(vector, seed=1, offset=0)
    calls = {
        "encode_ns": lambda: compressor.encode(vector, seed=1, offset=0),
        "decode_ns": lambda: compressor.decode(payload),
    }
    return {name: nanoseconds(call, vector.numel()) for name, call in calls.items()}


def nanoseconds(call: Callable[[], object], coordinates: int) -> float:
    """For each of so many coordinates: the least of seven calls, or of those that began within a second."""
    least, began = math.inf, time.perf_counter()
    for _ in range(7):
        started = time.perf_counter()
        if least < math.inf and started - began > 1.0:
            break
        call()
        least = min(least, time.perf_counter() - started)
    return 1e9 / coordinates * least


def table(
    sets: Sequence[Gradients], chosen: Sequence[Variant], coordinates: int, before: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """A row for each variant and set of gradients. Times are those on the first set, repeated to `coordinates`, or, of
    variants that there are rows of, theirs."""
    known = {_key(row["method"], row["options"]): {name: row[name] for name in TIMES & row.keys()} for row in before}
    first = sets[0].held.reshape(-1)
    long = first.repeat(-(-coordinates // first.numel()))[:coordinates].clone()
    rows = []
    for variant in chosen:
        compressor = variant.create()
        found = {each.name: measured(compressor if each is sets[0] else variant.create(), each) for each in sets}
        seconds = known.get(_key(variant.method, variant.options))
        if seconds is None:
            seconds = timed(compressor, long) if not compressor.layers else {}
        print(variant.method, variant.options, {name: round(one["nmse"], 4) for name, one in found.items()}, flush=True)
        rows += [
            {"gradients": name, "method": variant.method, "options": variant.options} | _rounded(one | seconds)
            for name, one in found.items()
        ]
    return rows


def _key(method: str, options: dict[str, Any]) -> str:
    return json.dumps([method, options], sort_keys=True)


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{figure:.4g}") for name, figure in figures.items()}


def draw(rows: Sequence[dict[str, Any]], bounds: dict[str, dict[str, list[float]]], output: Path) -> None:
    """NMSE against bits, a panel for each set of gradients: of every method its best variants."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(bounds)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(1.0 + 5.0 * len(panels), 5.6), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, name in zip(axes[0], panels, strict=True):
        bits = np.array(bounds[name]["bits"])
        panel.plot(bits, 4.0**-bits, color="0.6", linestyle=":", label="normal: rate-distortion bound")
        panel.plot(bits, bounds[name]["block_gaussian"], color="0.3", label="blocks of 64 normal ones: bound")
        own = [row for row in rows if row["gradients"] == name]
        for method in in_order(row["method"] for row in own):
            points = best([row for row in own if row["method"] == method])
            if points:
                style = look(method)
                x, y = zip(*points, strict=True)
                panel.plot(x, y, color=style.colour, linestyle=style.dashes, marker=style.marker, label=method)
        panel.set(
            title=name, xlabel="bits sent for each coordinate", yscale="log", ylim=(FLOOR, CEILING), xlim=(0, 4.6)
        )
        panel.grid(color="0.92")
    axes[0][0].set_ylabel("NMSE of one worker's gradient")
    handles: dict[str, Any] = {}
    for panel in axes[0]:
        found, labels = panel.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(output, dpi=110)


def best(rows: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(bits, NMSE), ascending, of the best variant at each number of bits that was asked for, as far as the figure has
    room: that of least NMSE, where a bit more that is sent is to quarter it."""
    least: dict[Any, tuple[float, float]] = {}
    for row in rows:
        key, point = row["options"].get("bits", row["options"].get("density")), (row["bits"], row["nmse"])
        if key not in least or point[1] * 4.0 ** point[0] < least[key][1] * 4.0 ** least[key][0]:
            least[key] = point
    return sorted(point for point in least.values() if point[1] <= CEILING)


def targets(rows: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """What compressors of a payload of fixed size are to reach."""

    def least(most_bits: float) -> list[float]:
        by_set: dict[str, float] = {}
        for row in rows:
            if row["bits"] <= most_bits + 0.005:  # 3 bits and a norm for each bucket of 8192 are 3.004
                by_set[row["gradients"]] = min(row["nmse"], by_set.get(row["gradients"], np.inf))
        return list(by_set.values())

    return {"NMSE at 3 bits at most .035": max(least(3)) <= 0.035, "NMSE at 2 bits at most .15": max(least(2)) <= 0.15}


def chosen_sets(files: Sequence[Path], there: Sequence[str]) -> list[Gradients]:
    """Of files, or captured now: all but those that are there."""
    if files:
        return [one for file in files for one in from_file(file)]
    transformer = f"{TRANSFORMER}, {TRANSFORMER_AT} steps"
    sets = [
        one
        for name in NETWORKS
        if not {f"{name}, {at} steps" for at in AT} <= set(there)
        for one in captured(name, AT)
        if one.name not in there
    ]
    return sets if transformer in there else [*sets, of_transformer(TRANSFORMER_AT)]


def main() -> None:
    """The table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--missing", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    before: dict[str, Any] = {"bounds": {}, "rows": []}
    if chosen.missing:
        before = json.loads((RESULTS / "compressors.json").read_text())["figures"]
    bounds, rows = dict(before["bounds"]), list(before["rows"])
    sets = chosen_sets(chosen.files, list(bounds))
    torch.set_num_threads(2)  # a training sets its own
    rows += table(sets, list(variants()), TIMED, rows)
    bits = np.linspace(0.25, 4.5, 18)
    for one in sets:
        vectors = one.held.reshape(-1, one.held.shape[-1]).double().numpy()
        bounds[one.name] = {"bits": bits.tolist(), "block_gaussian": block_gaussian_nmse(vectors, bits).tolist()}
    x = torch.randn(TIMED)
    clone = before.get("clone_ns") or nanoseconds(x.clone, TIMED)
    draw(rows, bounds, RESULTS / "compressors.png")
    record("compressors", {"clone_ns": clone, "bounds": bounds, "rows": rows}, targets(rows))


if __name__ == "__main__":
    main()
