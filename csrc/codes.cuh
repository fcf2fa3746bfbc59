// Encoding and decoding, a kernel for each number of bits.
#pragma once

#include "chunks.cuh"

namespace lqray::cuda {

namespace {

constexpr int kTilesOfChunk = kSumChunk / kTile;
constexpr int kUnrolledBits = 3;  // of more, the code of a chunk's tiles side by side is too long

// A warp for each tile; buckets may end within it.
template <int kBits, typename Reader>
__global__ void __launch_bounds__(kThreads) encode_tiles(Reader x, int64_t n, const float* norms, DeviceLevels levels,
                                                        Divisor bucket_size, Random random, uint64_t first_tile,
                                                        uint32_t* words) {
  __shared__ Tables<kBits> tables;
  __shared__ TileWords<kBits> places[kWarps];
  fill(tables, levels);
  __syncthreads();
  const int lane = threadIdx.x & 31;
  const float middle = tables.middle();
  const int64_t tiles = ceil_divide(n, kTile), step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index(); tile < tiles; tile += step) {
    const int64_t start = tile * kTile, first = bucket_size.of(start);
    const int64_t left = (first + 1) * bucket_size.divisor - start;  // of the tile's first bucket
    float r[kPerLane];
    if (n - start >= kTile && left >= kTile) {
      const Scale scale = scale_of(uniform_of(norms[first]));
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) r[j] = x[start + 32 * j + lane];
      if (scale.lift != 1.0f)
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) r[j] *= scale.lift;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) r[j] *= scale.inverse;
    } else {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int64_t i = start + 32 * j + lane;
        r[j] = -2.0f;  // beyond the end: code 0
        if (i < n) {
          const Scale scale = scale_of(norms[bucket_size.of(i)]);
          r[j] = (x[i] * scale.lift) * scale.inverse;
        }
      }
    }
    const int groups = static_cast<int>(min(static_cast<int64_t>(kPerLane), ceil_divide(n - start, 32)));
    encode_tile<kBits>(r, tables, middle, first_tile + tile, random, groups * kBits, places[threadIdx.x >> 5],
                       words + start / 32 * kBits);
  }
}

// Whole buckets of `warps` chunks of 1,024 coordinates, each of which is one warp's and stays in its registers (of more
// than three bits: in the cache, for the codes), so that memory is read once for norm and codes. As many buckets as fit
// a CUDA block share it.
template <int kBits, Norm kNorm, typename Reader>
__global__ void __launch_bounds__(32 * kMostWarps) encode_buckets(Reader x, int64_t buckets, int warps,
                                                                 DeviceLevels levels, Random random, float* norms,
                                                                 uint32_t* words) {
  __shared__ Tables<kBits> tables;
  __shared__ TileWords<kBits> places[kMostWarps];
  __shared__ uint32_t parts[2][kMostWarps];  // of the warps: in turn, so that one barrier is enough
  fill(tables, levels);
  __syncthreads();
  const int lane = threadIdx.x & 31, warp = warp_index(), at_once = static_cast<int>(blockDim.x) / 32 / warps;
  const int first_warp = warp / warps * warps;
  const float middle = tables.middle();
  int turn = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * at_once; first < buckets;
       first += static_cast<int64_t>(gridDim.x) * at_once, turn ^= 1) {
    const int64_t own = first + warp / warps, bucket = min(own, buckets - 1);
    const bool held = own < buckets;  // the others do as the last bucket's warps do, but for what they store
    const int64_t start = (bucket * warps + warp % warps) * kSumChunk;
    float value[kValues];
    read_whole(x, start, value);
    const float norm = uniform_of(norm_of_bucket<kNorm>(value, Held{value}, parts[turn], first_warp, warps));
    if (!held) continue;
    if (lane == 0 && warp == first_warp) norms[bucket] = norm;
    const Scale scale = scale_of(norm);
    if constexpr (kBits <= kUnrolledBits) {
      if (scale.lift != 1.0f)
#pragma unroll
        for (int k = 0; k < kValues; ++k) value[k] *= scale.lift;
#pragma unroll
      for (int t = 0; t < kTilesOfChunk; ++t) {
        float r[kPerLane];
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) r[j] = value[t * kPerLane + j] * scale.inverse;
        encode_tile<kBits>(r, tables, middle, static_cast<uint64_t>(start / kTile + t), random, kPerLane * kBits,
                           places[warp], words + (start / 32 + t * kPerLane) * kBits);
      }
    } else {
#pragma unroll 1
      for (int t = 0; t < kTilesOfChunk; ++t) {
        float r[kPerLane];
#pragma unroll
        for (int j = 0; j < kPerLane; ++j)
          r[j] = (x[start + t * kTile + 32 * j + lane] * scale.lift) * scale.inverse;
        encode_tile<kBits>(r, tables, middle, static_cast<uint64_t>(start / kTile + t), random, kPerLane * kBits,
                           places[warp], words + (start / 32 + t * kPerLane) * kBits);
      }
    }
  }
}

// Buckets of 64 to 512 coordinates, a power of two of them, in whole chunks of 1,024: a warp for each chunk, which stays
// in its registers between norms and codes, as in encode_buckets.
template <int kBits, Norm kNorm, typename Reader>
__global__ void __launch_bounds__(kThreads) encode_short_buckets(Reader x, int64_t chunks, int shift,
                                                                DeviceLevels levels, Random random, float* norms,
                                                                uint32_t* words) {
  __shared__ Tables<kBits> tables;
  __shared__ TileWords<kBits> places[kWarps];
  fill(tables, levels);
  __syncthreads();
  const int lane = threadIdx.x & 31, warp = warp_index(), buckets = kValues >> shift;
  const float middle = tables.middle();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t chunk = static_cast<int64_t>(blockIdx.x) * kWarps + warp; chunk < chunks; chunk += step) {
    const int64_t start = chunk * kSumChunk;
    float value[kValues];
    read_whole(x, start, value);
    const float norm = norms_in_chunk<kNorm>(value, x, start, shift);
    if (bucket_of_lane(lane) < buckets) norms[chunk * buckets + bucket_of_lane(lane)] = norm;
    const Scale scale = scale_of(norm);
    if constexpr (kBits <= kUnrolledBits) {
      scale_chunk(value, scale, shift);
#pragma unroll
      for (int t = 0; t < kTilesOfChunk; ++t) {
        float r[kPerLane];
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) r[j] = value[t * kPerLane + j];
        encode_tile<kBits>(r, tables, middle, static_cast<uint64_t>(start / kTile + t), random, kPerLane * kBits,
                           places[warp], words + (start / 32 + t * kPerLane) * kBits);
      }
    } else {
#pragma unroll 1
      for (int t = 0; t < kTilesOfChunk; ++t) {
        float r[kPerLane];
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          const int from = lane_of_bucket((t * kPerLane + j) >> shift);
          const float lifted = x[start + t * kTile + 32 * j + lane] * __shfl_sync(kAll, scale.lift, from);
          r[j] = lifted * __shfl_sync(kAll, scale.inverse, from);
        }
        encode_tile<kBits>(r, tables, middle, static_cast<uint64_t>(start / kTile + t), random, kPerLane * kBits,
                           places[warp], words + (start / 32 + t * kPerLane) * kBits);
      }
    }
  }
}

// Payloads in rows: norms, then words.
struct Rows {
  const uint8_t* data;
  int64_t count;
  int64_t stride;
  int64_t norm_bytes;
};

// Of word i of a tile the lane's bit, where an offset into a table of floats has the bit of `plane`.
__device__ __forceinline__ unsigned bit_of(uint32_t word, int lane, int plane) {
  return __funnelshift_r(word, word, lane - plane - 2) & (4u << plane);
}

// The offsets of the codes of a lane's eight coordinates, from the tile's words, of which there are `held`.
template <int kBits>
__device__ __forceinline__ void codes_of_tile(const uint32_t* words, int held, unsigned (&at)[kPerLane]) {
#pragma unroll
  for (int slot = 0; slot < kPerLane * kBits; ++slot) {
    const unsigned bit = bit_of(slot < held ? words[slot] : 0u, threadIdx.x & 31, slot % kBits);
    at[slot / kBits] = slot % kBits ? at[slot / kBits] | bit : bit;
  }
}

// A warp for each tile. kPlain: norm * level of one row; else (sum over the rows in their order) * scale, added to
// `add`, if any.
template <int kBits, bool kPlain>
__global__ void __launch_bounds__(kThreads) decode_tiles(Rows rows, DeviceLevels levels, int64_t n, Divisor bucket_size,
                                                        float scale, const float* add, float* out) {
  __shared__ float levels_of_codes[1 << kBits];
  for (int i = threadIdx.x; i < (1 << kBits); i += kThreads)
    levels_of_codes[i] = levels.data[min(i, levels.count - 1)];
  __syncthreads();
  const char* table = reinterpret_cast<const char*>(levels_of_codes);
  const int lane = threadIdx.x & 31;
  const int64_t tiles = ceil_divide(n, kTile), step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index(); tile < tiles; tile += step) {
    const int64_t start = tile * kTile, first = bucket_size.of(start);
    const int64_t left = (first + 1) * bucket_size.divisor - start;  // of the tile's first bucket
    const bool within = n - start >= kTile && left >= kTile;
    float sum[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) sum[j] = 0.0f;
    for (int64_t row = 0; row < (kPlain ? 1 : rows.count); ++row) {
      const uint8_t* payload = rows.data + row * rows.stride;
      const float* norms = reinterpret_cast<const float*>(payload);
      const uint32_t* words = reinterpret_cast<const uint32_t*>(payload + rows.norm_bytes) + start / 32 * kBits;
      unsigned at[kPerLane];
      if (within) {
        codes_of_tile<kBits>(words, kPerLane * kBits, at);
        const float norm = norms[first];
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          const float term = norm * *reinterpret_cast<const float*>(table + at[j]);
          sum[j] = kPlain ? term : sum[j] + term;
        }
      } else {
        const int groups = static_cast<int>(min(static_cast<int64_t>(kPerLane), ceil_divide(n - start, 32)));
        codes_of_tile<kBits>(words, groups * kBits, at);
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          const int64_t i = min(start + 32 * j + lane, n - 1);  // what is beyond the end is not stored
          const float term = norms[bucket_size.of(i)] * *reinterpret_cast<const float*>(table + at[j]);
          sum[j] = kPlain ? term : sum[j] + term;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int64_t i = start + 32 * j + lane;
      if (within || i < n) out[i] = kPlain ? sum[j] : add ? add[i] + sum[j] * scale : sum[j] * scale;
    }
  }
}

}  // namespace

}  // namespace lqray::cuda
