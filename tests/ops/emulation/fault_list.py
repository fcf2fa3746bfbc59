"""Faults that are planted in the CUDA kernels, one at a time: texts of the kernels and what takes their place.

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
# Faults that change nothing, by name: why.
SPARE: dict[str, str] = {}


def barriers(kernels: str) -> list[Fault]:
    """Every barrier left out."""
    count = kernels.count(BARRIER)
    return [Fault(f"__syncthreads {i + 1} of {count} left out", BARRIER, ";", i) for i in range(count)]


# fmt: off
FAULTS = [
    # Threads that wait for each other.
    Fault("a barrier that only some threads reach", f"    {BARRIER}\n    transform_between",
          f"    if (threadIdx.x < 128) {BARRIER}\n    transform_between"),
    Fault("warps without a tile return before the barrier", "  fill(tables, levels);\n  __syncthreads();",
          "  if ((blockIdx.x * kWarps + (threadIdx.x >> 5)) * kTile >= n) return;\n"
          "  fill(tables, levels);\n  __syncthreads();", 0),
    Fault("warps without a bucket leave before the barrier",
          "    float norm;\n    if (kNorm == Norm::l2) {\n      float sq",
          "    if (!held) break;\n    float norm;\n    if (kNorm == Norm::l2) {\n      float sq"),
    Fault("a lane skips the sum of its warp", "      squares = tree_sum(squares);\n      if (lane == 0)",
          "      if (threadIdx.x != 255) squares = tree_sum(squares);\n      if (lane == 0)"),
    Fault("a mask without lane 31", "kAll = 0xffffffffu", "kAll = 0x7fffffffu"),
    Fault("a ballot of the lanes with a bit only", "  return __ballot_sync(kAll, bit != 0);",
          "  return bit ? __ballot_sync(kAll, bit != 0) : 0u;"),
    Fault("a loop without end", "rows.count); ++row)", "rows.count); row += 0)"),
    Fault("a barrier that only rare buckets reach", "if (lane == 0) squares_of[warp] = sum;\n  __syncthreads();",
          "if (lane == 0) squares_of[warp] = sum;\n  if (!squares_suffice(squares)) __syncthreads();"),
    # Reductions.
    Fault("a sum of half a warp", "for (int width = 16;", "for (int width = 8;", 0),
    Fault("a largest of half a warp", "for (int width = 16;", "for (int width = 8;", 1),
    Fault("statistics: a sum of half a warp", "for (int width = 16;", "for (int width = 8;", 2),
    Fault("a sum that misses the neighbour", "width > 0; width /= 2) sum", "width > 1; width /= 2) sum"),
    Fault("a sum with the wrong lane", "sum += __shfl_xor_sync(kAll, sum, width)",
          "sum += __shfl_xor_sync(kAll, sum, width / 2)"),
    Fault("a sum in another order", "for (int width = 16; width > 0; width /= 2) sum +=",
          "for (int width = 1; width < 32; width *= 2) sum +="),
    Fault("statistics: without the last warp", "warp < kWarps; ++warp) {\n    total",
          "warp < kWarps - 1; ++warp) {\n    total"),
    Fault("statistics: two warps share a place", "parts[threadIdx.x >> 5] = sums", "parts[threadIdx.x >> 6] = sums"),
    Fault("statistics: all lanes store the warp's part", "if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = sums",
          "parts[threadIdx.x >> 5] = sums"),
    Fault("the largest: two warps share a place", "parts[warp] = largest", "parts[warp / 2] = largest"),
    Fault("the largest: without the last warp", "lane < warps ? parts[lane]", "lane < warps - 1 ? parts[lane]"),
    Fault("the largest of the first chunk alone", "chunks.largest[i])", "chunks.largest[first])"),
    Fault("all lanes store the norm", "if (lane == 0 && warp == first_warp) norms", "if (warp == first_warp) norms"),
    Fault("all warps store the norm", "if (lane == 0 && warp == first_warp) norms", "if (lane == 0) norms"),
    Fault("one set of parts for every turn", ", turn ^= 1)", ")", 0),
    Fault("parts of the neighbouring bucket", "lane < warps ? parts[turn][first_warp + lane]",
          "lane < warps ? parts[turn][lane]", 0),
    Fault("parts of more warps than the bucket has", "lane < warps ? parts[turn]", "lane < 8 ? parts[turn]", 1),
    Fault("groups that two warps sum", "group < groups; group += warps", "group < groups; ++group"),
    Fault("a long bucket's last chunk is left out", "chunks.count - first);", "chunks.count - first - 1);"),
    Fault("a long bucket's chunks of 1,024 beyond the first", "static_cast<int64_t>(group) * kSumChunk",
          "static_cast<int64_t>(group) * 0"),
    # Shared memory.
    Fault("shared memory of a warp too few", "Sums parts[kWarps];", "Sums parts[kWarps - 1];"),
    Fault("places of half the warps", "TileWords<kBits> places[kMostWarps];",
          "TileWords<kBits> places[kMostWarps / 2];"),
    Fault("a place for two warps", "places[threadIdx.x >> 5]", "places[threadIdx.x >> 6]"),
    Fault("words are fetched before they are there", "  __syncwarp();\n  const uint32_t* staged",
          "  const uint32_t* staged"),
    Fault("words of the next tile before these are fetched", "  __syncwarp();  // the tile", "  // the tile"),
    Fault("a span of half the size", "__shared__ float span[kSpan];", "__shared__ float span[kSpan / 2];"),
    Fault("more threads than the launch bounds", "kThreads, 0, stream_of(stream)>>>(x, n, chunk",
          "2 * kThreads, 0, stream_of(stream)>>>(x, n, chunk"),
    Fault("tables filled up to the last level only", "i < (1 << kBits); i += blockDim.x) {",
          "i < levels.count - 1; i += blockDim.x) {"),
    Fault("decoding: a table without its last code", "i < (1 << kBits); i += kThreads)",
          "i < (1 << kBits) - 1; i += kThreads)"),
    # Work of a grid.
    Fault("a launch on the default stream", "kThreads, 0, on>>>(\n          reader",
          "kThreads, 0, nullptr>>>(\n          reader"),
    Fault("short buckets: the stride of one warp",
          "step = static_cast<int64_t>(gridDim.x) * kWarps;\n  for (int64_t bucket",
          "step = static_cast<int64_t>(gridDim.x);\n  for (int64_t bucket"),
    Fault("short buckets: no stride", "bucket += step", "bucket += buckets"),
    Fault("long buckets: no stride", "bucket += gridDim.x", "bucket += buckets", 0),
    Fault("chunks: no stride", "chunk += step", "chunk += chunks.count"),
    Fault("statistics: no stride", "bucket += gridDim.x", "bucket += buckets", 1),
    Fault("fused encoding: no stride", "first += static_cast<int64_t>(gridDim.x) * at_once", "first += buckets"),
    Fault("fused encoding: buckets that two blocks encode", "static_cast<int64_t>(blockIdx.x) * at_once;",
          "static_cast<int64_t>(blockIdx.x);"),
    Fault("tiles: no stride", "tile += step", "tile += tiles", 0),
    Fault("decoding: no stride", "tile += step", "tile += tiles", 1),
    Fault("Hadamard spans: no stride", "start += static_cast<int64_t>(gridDim.x) * kSpan", "start += n"),
    Fault("Hadamard stage: no stride", "column += static_cast<int64_t>(gridDim.x) * kSignTile", "column += n"),
    Fault("Hadamard stage: tiles that overlap", "column = static_cast<int64_t>(blockIdx.x) * kSignTile",
          "column = static_cast<int64_t>(blockIdx.x) * (kSignTile / 2)"),
    Fault("short buckets: the last one is missing", "bucket < buckets; bucket += step",
          "bucket < buckets - 1; bucket += step"),
    Fault("long buckets: the last one is missing", "bucket < buckets; bucket += gridDim.x",
          "bucket < buckets - 1; bucket += gridDim.x", 0),
    Fault("statistics: the last bucket is missing", "bucket < buckets; bucket += gridDim.x",
          "bucket < buckets - 1; bucket += gridDim.x", 1),
    Fault("the last tile is missing", "tiles = ceil_divide(n, kTile)", "tiles = n / kTile", 0),
    Fault("decoding: the last tile is missing", "tiles = ceil_divide(n, kTile)", "tiles = n / kTile", 1),
    # Bounds.
    Fault("short buckets: read beyond the end", "stop = min(n, start + bucket_size);",
          "stop = start + bucket_size;", 0),
    Fault("long buckets: one coordinate is left out", "min(n, first + bucket_size)",
          "min(n, first + bucket_size - 1)"),
    Fault("chunks: read one beyond", "start + kSumChunk);", "start + kSumChunk + 1);"),
    Fault("chunks of the next bucket", "bucket = chunks.of_bucket.of(chunk)",
          "bucket = chunks.of_bucket.of(chunk + 1)"),
    Fault("fused encoding: a bucket beyond the last", "const bool held = bucket < buckets;",
          "const bool held = bucket <= buckets;"),
    Fault("fused encoding: the rest is forgotten", "encode_from(rest, first_tile",
          "encode_from(rest_of(x, x.n), first_tile"),
    Fault("fused encoding: the rest's random numbers are the first's", "encode_from(rest, first_tile",
          "encode_from(rest, 0"),
    Fault("tiles: read one beyond", "        if (i < n) {\n          const Scale",
          "        if (i <= n) {\n          const Scale"),
    Fault("tiles: whole tiles of two buckets", "left >= kTile) {", "left >= kTile / 2) {"),
    Fault("a word too many is stored", "if (slot < count) words", "if (slot <= count) words"),
    Fault("words beyond the end are stored", "if (slot < count) words[slot]", "words[slot]"),
    Fault("the last, short group is not stored", "ceil_divide(n - start, 32)));\n    encode",
          "(n - start) / 32));\n    encode"),
    Fault("coordinates beyond the end have codes", "r[j] = -2.0f;", "r[j] = 0.5f;"),
    Fault("decoding: words read beyond the end", "slot < held ? words[slot] : 0u", "words[slot]"),
    Fault("decoding: the last, short group is not read", "ceil_divide(n - start, 32)));\n        codes",
          "(n - start) / 32));\n        codes"),
    Fault("decoding: stored one beyond", "if (within || i < n) out", "if (within || i <= n) out"),
    Fault("Hadamard: stored beyond", "if (first + 32 * k < n) out", "if (first < n) out"),
    Fault("levels read beyond the last", "levels.data[min(i, levels.count - 1)]", "levels.data[i]"),
    Fault("a vector load wherever the tensor begins", "const { return p[i]; }",
          "const { return i & 1 ? p[i] : reinterpret_cast<const float2*>(p + i)->x; }"),
    Fault("tiles: 32-bit coordinates", "start = tile * kTile, first",
          "start = static_cast<int>(tile * kTile), first", 0),
    Fault("tiles: unsigned coordinates", "start = tile * kTile, first",
          "start = static_cast<unsigned>(tile * kTile), first", 0),
    Fault("decoding: 32-bit coordinates", "start = tile * kTile, first",
          "start = static_cast<int>(tile * kTile), first", 1),
    Fault("fused encoding: 32-bit coordinates", "start = (bucket * warps + warp % warps) * kSumChunk;",
          "start = static_cast<int>((bucket * warps + warp % warps) * kSumChunk);"),
    Fault("long buckets: 32-bit coordinates", "first = bucket * bucket_size;",
          "first = static_cast<unsigned>(bucket * bucket_size);"),
    Fault("Hadamard: 32-bit coordinates", "first = start + warp * kChunk + lane;",
          "first = static_cast<int>(start + warp * kChunk + lane);"),
    Fault("a quotient one too small", "magic) >> shift);", "magic - 2) >> shift);"),
    Fault("quotients of 32 bits", "__umul64hi(static_cast<uint64_t>(n), magic)",
          "__umul64hi(static_cast<uint32_t>(n), magic)"),
    # What is computed.
    Fault("the wrong norm", "norm == Norm::l2) return", "norm != Norm::l2) return"),
    Fault("NaN is lost", "largest = max(largest, magnitude(x[i]));",
          "largest = __float_as_uint(fmaxf(__uint_as_float(largest), fabsf(x[i])));", 0),
    Fault("the largest of signed numbers", "__float_as_uint(value) & 0x7fffffffu; }", "__float_as_uint(value); }"),
    Fault("fused encoding: an infinite norm", "norm = finite_or_nan(tree_largest(lane", "norm = (tree_largest(lane"),
    Fault("squares that were lost are not missed", "(held && !(squares >= kLeastSquares", "(held && !(squares >= 0.0f"),
    Fault("squares that overflow are not missed", "squares <= kMostSquares / kMostWarps)", "squares <= 3e38f)"),
    Fault("short buckets: squares that were lost are not missed", "__any_sync(kAll, !squares_suffice(norm))",
          "__any_sync(kAll, norm != norm)"),
    Fault("long buckets: squares that were lost are not missed", "else if (squares_suffice(squares))",
          "else if (squares == squares)"),
    Fault("long buckets: sums of squares that are not rescaled", "scaled = value * down", "scaled = value"),
    Fault("long buckets: a rescaled norm is not scaled back", "rescaling_of_unknown(before).up", "1.0f"),
    Fault("long buckets of zeros: a negative norm", "most > 0.0f ? -most : most", "-most"),
    Fault("a rescaled norm is not scaled back", "root_of(sum, scaled.up)", "root_of(sum, 1.0f)"),
    Fault("a rescaled bucket of zeros", ": root_of(sum, scaled.up);", ": root_of(sum, scaled.up) + 1e-38f;"),
    Fault("seed and offset exchanged", "philox(call, offset, keys)", "philox(offset, call, keys)"),
    Fault("the same random numbers in each tile", "random(tile * 32 + lane)", "random(lane)"),
    Fault("random numbers of the neighbour", "upper_bits(call, j), tables", "upper_bits(call, j ^ 1), tables"),
    Fault("random words that are not rotated", "__byte_perm(call.w[j >> 1], 0, 0x4103)",
          "__byte_perm(call.w[j >> 1], 0, 0x4321)"),
    Fault("planes in the wrong order", "ballot_of<kBits>(code, 8u << plane)",
          "ballot_of<kBits>(code, 8u << (kBits - 1 - plane))"),
    Fault("a plane of the neighbour", "ballot_of<kBits>(code, 8u << plane)", "ballot_of<kBits>(code, 4u << plane)"),
    Fault("words in the wrong order", "make_uint4(four[0], four[1], four[2], four[3])",
          "make_uint4(four[0], four[2], four[1], four[3])"),
    Fault("words are stored by another lane", "(slot & 3) == 3 && lane == 0)", "(slot & 3) == 3 && lane <= 1)"),
    Fault("decoding: bits of the wrong lane", "lane - plane - 2)", "31 - lane - plane - 2)"),
    Fault("decoding: words of the next group", "words[slot] : 0u", "words[slot ^ 1] : 0u"),
    Fault("cells from the wrong side", "return a >= b ? at + step : at;", "return a >= b ? at : at + step;"),
    Fault("an inner level is left out", "step >= 8; step /= 2)", "step > 8; step /= 2)"),
    Fault("the wrong middle", "inner[(1 << kBits) / 2 - 1].x", "inner[(1 << kBits) / 2].x"),
    Fault("no NaN beyond the inner levels", "levels.data[i + 1] : __uint_as_float(0x7fc00000u)",
          "levels.data[i + 1] : levels.data[levels.count - 1]"),
    Fault("rounding up too often", "return a < b ? at + step : at;", "return a <= b ? at + step : at;"),
    Fault("tiles: the norm of the first bucket", "scale_of(norms[bucket_size.of(i)])", "scale_of(norms[first])"),
    Fault("tiles: two buckets of a tile at most", "scale_of(norms[bucket_size.of(i)])",
          "scale_of(norms[first + (32 * j + lane >= left)])"),
    Fault("decoding: the norm of the first bucket", "norms[bucket_size.of(i)] * *", "norms[first] * *"),
    Fault("tiny norms are not lifted", "r[j] = (x[i] * scale.lift) * scale.inverse",
          "r[j] = x[i] * (scale.lift * scale.inverse)"),
    Fault("whole tiles: tiny norms are not lifted", "r[j] *= scale.lift;", ";"),
    Fault("fused encoding: tiny norms are not lifted", "value[k] *= scale.lift;", ";"),
    Fault("a row too few", "rows.count); ++row)", "rows.count - (rows.count > 1)); ++row)"),
    Fault("rows where the first one ends", "rows.data + row * rows.stride", "rows.data + (row ? rows.stride : 0)"),
    Fault("what is added to is ignored", "add ? add[i] + sum[j] * scale : sum[j] * scale", "sum[j] * scale"),
    Fault("a product and a sum rounded once", "add[i] + sum[j] * scale :", "fmaf(sum[j], scale, add[i]) :"),
    Fault("scaled before the sum", "sum[j] = kPlain ? term : sum[j] + term",
          "sum[j] = kPlain ? term : sum[j] + term * scale / scale", 0),
    Fault("half-precision read as bfloat16", "__uint_as_float(half_bits(p[i]))",
          "__uint_as_float(static_cast<uint32_t>(p[i]) << 16)"),
    Fault("signs of another word", "signs[turn].word[warp]", "signs[turn].word[warp ^ 1]"),
    Fault("long blocks: signs of another word", "4 * part + row / kRows", "4 * part"),
    Fault("signs of the neighbouring row", "word << (31 - row)", "word << (31 - (row ^ 1))"),
    Fault("signs of the first tile for every tile", "(first + tile * apart)", "(first)"),
    Fault("one set of signs for every turn", ", turn ^= 1)", ")", 1),
    Fault("long blocks: one set of signs for every turn", ", turn ^= 1)", ")", 2),
    Fault("butterflies between the wrong lanes", "__shfl_xor_sync(kAll, v[k], half)",
          "__shfl_xor_sync(kAll, v[k], half ^ 1)"),
    Fault("butterflies between lanes without the difference", "half ? 0x80000000u : 0u",
          "half ? 0u : 0x80000000u"),
    Fault("butterflies of short blocks beyond their ends", "if (half < chunk) {", "if (half <= chunk) {"),
    Fault("butterflies of rows beyond the block", "butterflies(v, 32, chunk)", "butterflies(v, 32, 2 * chunk)"),
    Fault("butterflies between warps beyond the block", "butterflies(v, kChunk, chunk)",
          "butterflies(v, kChunk, 2 * chunk)"),
    Fault("butterflies of rows without the difference", "v[k + apart] = upper - lower",
          "v[k + apart] = lower - upper"),
    Fault("Hadamard: no scale in the last stage", "unit * parts == block_size", "unit == block_size"),
    Fault("Hadamard: no signs in the last stage", "if (last && inverse)", "if (false)"),
    Fault("statistics: the deviation of all, not of a sample", "fmax(1.0, count - 1.0)", "count"),
    Fault("statistics: cancelled digits are kept", "deviations < 1e-9 * total.squares", "deviations < 0.0"),
    Fault("statistics: a bucket of zeros is divided by zero", "size == 0.0 ? 1.0 : size", "size"),
    Fault("statistics: the mean is not divided", "means[bucket] = mean / divisor", "means[bucket] = mean"),
]
# fmt: on
