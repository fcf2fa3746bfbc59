"""Faults that are planted in the CUDA kernels, one at a time: texts of quantize_cuda.cu and what takes their place.

A text that a rewritten kernel no longer has is an error of `faults.py`: give the fault its new place here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """old: text of the kernels; new: in its place. at: which of its occurrences; None: the only one."""

    name: str
    old: str
    new: str
    at: int | None = None

    def plant(self, kernels: str) -> str:
        """The kernels with this fault. Raises LookupError where the text is not there, or not once."""
        places = [match.start() for match in re.finditer(re.escape(self.old), kernels)]
        if self.at is None and len(places) != 1:
            raise LookupError(f"{self.name}: {self.old!r} is in the kernels {len(places)} times; wanted: once")
        if len(places) <= (self.at or 0):
            raise LookupError(f"{self.name}: {self.old!r} is in the kernels {len(places)} times; wanted: {self.at + 1}")
        place = places[self.at or 0]
        return kernels[:place] + self.new + kernels[place + len(self.old) :]


BARRIER = "__syncthreads();"
# Barriers without which nothing goes wrong.
SPARE = {
    "__syncthreads 5 of 7 left out": "each thread stores only what it alone has loaded of the chunk before",
}


def barriers(kernels: str) -> list[Fault]:
    """Every barrier left out."""
    count = kernels.count(BARRIER)
    return [Fault(f"__syncthreads {i + 1} of {count} left out", BARRIER, ";", i) for i in range(count)]


# fmt: off
FAULTS = [
    # Threads that wait for each other.
    Fault("a barrier that only some threads reach", f"half *= 2) {{\n      {BARRIER}",
          f"half *= 2) {{\n      if (threadIdx.x < 128) {BARRIER}"),
    Fault("warps without a tile return before the barrier", "  fill(tables, levels);\n  __syncthreads();",
          "  if ((blockIdx.x * kWarps + (threadIdx.x >> 5)) * kTile >= n) return;\n"
          "  fill(tables, levels);\n  __syncthreads();"),
    Fault("a lane skips the reduction of its warp", "  reduce_warp(sums);\n  __syncthreads();",
          "  if (threadIdx.x != 255) reduce_warp(sums);\n  __syncthreads();"),
    Fault("a mask without lane 31", "kAll = 0xffffffffu", "kAll = 0x7fffffffu"),
    Fault("a ballot of the lanes inside the tensor only", "= __ballot_sync(kAll, (code[j] >> plane) & 1);",
          "= r[j] != -2.0f ? __ballot_sync(kAll, (code[j] >> plane) & 1) : 0u;"),
    Fault("a loop without end", "row < count; ++row", "row < count; row += 0"),
    # Reductions.
    Fault("a reduction of half a warp", "int width = 16;", "int width = 8;"),
    Fault("a reduction that misses the neighbour", "width > 0; width /= 2", "width > 1; width /= 2"),
    Fault("a reduction with the wrong lane", "__shfl_xor_sync(kAll, sums.squares, width)",
          "__shfl_xor_sync(kAll, sums.squares, width / 2)"),
    Fault("a reduction without the last warp", "warp < kWarps; ++warp", "warp < kWarps - 1; ++warp"),
    Fault("two warps share a place", "parts[threadIdx.x >> 5] = sums", "parts[threadIdx.x >> 6] = sums"),
    Fault("all lanes store the warp's part", "if ((threadIdx.x & 31) == 0) parts", "parts"),
    Fault("all threads store the norm", "if (threadIdx.x == 0) norms[bucket] = size;", "norms[bucket] = size;"),
    # Shared memory.
    Fault("shared memory of a warp too few", "Sums parts[kWarps];", "Sums parts[kWarps - 1];"),
    Fault("dynamic shared memory of half the size", "chunk * sizeof(float), stream",
          "chunk * sizeof(float) / 2, stream"),
    Fault("more shared memory than a launch may have", "kChunk = 8192;", "kChunk = 16384;"),
    Fault("more threads than the launch bounds", "kThreads, chunk * sizeof(float)",
          "2 * kThreads, chunk * sizeof(float)"),
    Fault("tables filled up to the last level only", "i < (1 << levels.bits); i += blockDim.x) {",
          "i < levels.count - 1; i += blockDim.x) {"),
    Fault("a chunk loaded by the threads of half a block", "i < chunk; i += kThreads)\n      v[i] =",
          "i < chunk / 2; i += kThreads)\n      v[i] ="),
    # Work of a grid.
    Fault("a launch on the default stream", "stream_of(stream)>>>(\n          reader", "nullptr>>>(\n          reader"),
    Fault("short buckets: the stride of one warp", "step = static_cast<int64_t>(gridDim.x) * kWarps;",
          "step = static_cast<int64_t>(gridDim.x);", 0),
    Fault("short buckets: no stride", "bucket += step", "bucket += buckets"),
    Fault("long buckets: no stride", "bucket += gridDim.x", "bucket += buckets", 0),
    Fault("statistics: no stride", "bucket += gridDim.x", "bucket += buckets", 1),
    Fault("fused encoding: no stride", "bucket += gridDim.x", "bucket += buckets", 2),
    Fault("tiles: no stride", "tile += step", "tile += tiles", 0),
    Fault("decoding: no stride", "tile += step", "tile += tiles", 1),
    Fault("Hadamard chunks: no stride", "c += gridDim.x", "c += chunks"),
    Fault("Hadamard stage: no stride", "pair += static_cast<int64_t>(gridDim.x) * kThreads", "pair += pairs"),
    Fault("blocks that overlap by a thread", "static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x",
          "static_cast<int64_t>(blockIdx.x) * (kThreads - 1) + threadIdx.x"),
    Fault("short buckets: the last one is missing", "bucket < buckets;\n       bucket += step",
          "bucket < buckets - 1;\n       bucket += step"),
    Fault("long buckets: the last one is missing", "bucket < buckets; bucket += gridDim.x",
          "bucket < buckets - 1; bucket += gridDim.x", 0),
    Fault("statistics: the last bucket is missing", "bucket < buckets; bucket += gridDim.x",
          "bucket < buckets - 1; bucket += gridDim.x", 1),
    Fault("the last tile is missing", "tiles = (n + kTile - 1) / kTile", "tiles = n / kTile", 0),
    Fault("decoding: the last tile is missing", "tiles = (n + kTile - 1) / kTile", "tiles = n / kTile", 1),
    # Bounds.
    Fault("short buckets: read beyond the end", "stop = min(n, (bucket + 1) * bucket_size)",
          "stop = (bucket + 1) * bucket_size", 0),
    Fault("long buckets: one coordinate is left out", "stop = min(n, (bucket + 1) * bucket_size)",
          "stop = min(n, (bucket + 1) * bucket_size - 1)", 1),
    Fault("fused encoding: read one beyond", "value[t][j] = i < n ?", "value[t][j] = i <= n ?"),
    Fault("tiles: read one beyond", "      if (i < n) {", "      if (i <= n) {"),
    Fault("a word too many is stored", "if (lane + 32 < count)", "if (lane + 32 <= count)"),
    Fault("words beyond the end are stored", "min(static_cast<int64_t>(kPerLane), groups) * bits",
          "static_cast<int64_t>(kPerLane) * bits"),
    Fault("the last, short group is not stored", "(n - start + 31) / 32,\n", "(n - start) / 32,\n"),
    Fault("fused encoding: the last, short group is not stored", "(n - tile_start + 31) / 32", "(n - tile_start) / 32"),
    Fault("coordinates beyond the end have codes", "r[j] = -2.0f;", "r[j] = 0.0f;"),
    Fault("decoding: words read beyond the end", "lane + 32 < held ? words[lane + 32] : 0u", "words[lane + 32]"),
    Fault("decoding: the last, short group is not read", "(n - start + 31) / 32)) * bits", "(n - start) / 32)) * bits"),
    Fault("decoding: stored one beyond", "if (i < n) out[i]", "if (i <= n) out[i]"),
    Fault("levels read beyond the last", "levels.data[min(i, levels.count - 1)]", "levels.data[i]"),
    Fault("a vector load wherever the tensor begins", "const { return p[i]; }",
          "const { return i & 1 ? p[i] : reinterpret_cast<const float2*>(p + i)->x; }"),
    Fault("tiles: 32-bit coordinates", "start = tile * kTile, first", "start = static_cast<int>(tile * kTile), first"),
    Fault("tiles: unsigned coordinates", "start = tile * kTile, first",
          "start = static_cast<unsigned>(tile * kTile), first"),
    Fault("decoding: 32-bit coordinates", "start = tile * kTile, bucket",
          "start = static_cast<int>(tile * kTile), bucket"),
    Fault("fused encoding: 32-bit coordinates", "start = bucket * kBucket;",
          "start = static_cast<int>(bucket * kBucket);"),
    Fault("long buckets: 32-bit coordinates", "i = bucket * bucket_size + threadIdx.x",
          "i = static_cast<unsigned>(bucket * bucket_size + threadIdx.x)"),
    Fault("Hadamard: 32-bit coordinates", "start = c * chunk;", "start = static_cast<int>(c) * chunk;"),
    # What is computed.
    Fault("the wrong norm", "norm == Norm::l2 ?", "norm != Norm::l2 ?"),
    Fault("NaN is lost", "max(sums.largest, __float_as_uint(value) & 0x7fffffffu)",
          "__float_as_uint(fmaxf(__uint_as_float(sums.largest), fabsf(value)))"),
    Fault("an infinite norm", "isfinite(value) ? value : __uint_as_float(0x7fc00000u)", "value"),
    Fault("the largest of signed numbers", "__float_as_uint(value) & 0x7fffffffu", "__float_as_uint(value)"),
    Fault("seed and offset exchanged", "philox(tile * 32 + lane, offset, seed)",
          "philox(tile * 32 + lane, seed, offset)"),
    Fault("the seed's upper half is lost", "philox(tile * 32 + lane, offset, seed)",
          "philox(tile * 32 + lane, offset, static_cast<uint32_t>(seed))"),
    Fault("the same random numbers in each tile", "philox(tile * 32 + lane,", "philox(lane,"),
    Fault("random numbers of the neighbour", "word_of(call, j));", "word_of(call, j ^ 1));"),
    Fault("planes in the wrong order", "(code[j] >> plane) & 1);", "(code[j] >> (bits - 1 - plane)) & 1);"),
    Fault("a word at the wrong lane", "slot == lane + 32", "slot == lane + 31"),
    Fault("decoding: words of the wrong lane", "slot & 31);", "(slot + 1) & 31);"),
    Fault("decoding: bits of the wrong lane", "(word >> lane) & 1u", "(word >> (31 - lane)) & 1u"),
    Fault("decoding: a signed shift", "((word >> lane) & 1u) << plane",
          "(static_cast<int32_t>(word) >> lane) << plane"),
    Fault("a level is not reached", "code[j] += r[j] >= at;", "code[j] += r[j] > at;"),
    Fault("an inner level is left out", "level < levels.count - 2;", "level < levels.count - 3;"),
    Fault("no NaN beyond the inner levels", "levels.data[i + 1] : __uint_as_float(0x7fc00000u)",
          "levels.data[i + 1] : levels.data[levels.count - 1]"),
    Fault("rounding up too often", "u * tables.gap[code[j]] < r[j]", "u * tables.gap[code[j]] <= r[j]"),
    Fault("tiles: the norm of the bucket before", "within < left ? whole : scale_of",
          "within <= left ? whole : scale_of"),
    Fault("tiles: two buckets of a tile at most", "scale_of(norms[i / bucket_size])", "scale_of(norms[first + 1])"),
    Fault("decoding: the norm of the bucket before", "within < left ? whole : norms", "within <= left ? whole : norms"),
    Fault("tiny norms are not lifted", "(x[i] * scale.lift) * scale.inverse", "x[i] * (scale.lift * scale.inverse)"),
    Fault("a row too few", "row < count; ++row", "row < count - (count > 1); ++row"),
    Fault("rows where the first one ends", "rows + row * stride", "rows + (row ? stride : 0)"),
    Fault("what is added to is ignored", "add ? add[i] + sum[j] * scale : sum[j] * scale", "sum[j] * scale"),
    Fault("a product and a sum rounded once", "add[i] + sum[j] * scale :", "fmaf(sum[j], scale, add[i]) :"),
    Fault("scaled before the sum", "sum[j] = plain ? term : sum[j] + term",
          "sum[j] = plain ? term : sum[j] + term * scale / scale"),
    Fault("half-precision read as bfloat16", "__uint_as_float(half_bits(p[i]))",
          "__uint_as_float(static_cast<uint32_t>(p[i]) << 16)"),
    Fault("signs of another word", "i % kTile) / 32;", "i % kTile) / 64;"),
    Fault("butterflies of the wrong pairs", "i = (pair / half) * 2 * half + pair % half;\n        const",
          "i = (pair / half) * half + pair % half;\n        const"),
    Fault("butterflies without the difference", "v[i + half] = upper - lower", "v[i + half] = lower - upper"),
    Fault("Hadamard: no scale in the last stage", "2 * half == block_size, scale", "half == block_size, scale"),
    Fault("Hadamard: no signs in the last stage", "lower = signed_value(lower, i + half, seed, offset);", ";"),
    Fault("statistics: the deviation of all, not of a sample", "fmax(1.0, count - 1.0)", "count"),
    Fault("statistics: cancelled digits are kept", "deviations < 1e-9 * total.squares", "deviations < 0.0"),
    Fault("statistics: a bucket of zeros is divided by zero", "size == 0.0 ? 1.0 : size", "size"),
    Fault("statistics: the mean is not divided", "means[bucket] = mean / divisor", "means[bucket] = mean"),
]
# fmt: on
