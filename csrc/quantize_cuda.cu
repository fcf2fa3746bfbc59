// CUDA kernels. A warp handles a tile of 256 coordinates: lane l has coordinates 32 j + l, one Philox call for its eight,
// and a bit plane of a group of 32 is one ballot. Where a bucket is 2,048 to 16,384 coordinates long, one block holds it
// in registers: x is read once for norm and codes.
#include <cuda_runtime.h>

#include <algorithm>

#include "quantize_cuda.h"

namespace lqray::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPerLane = kTile / 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int64_t kMostBlocks = 1 << 30;
constexpr int kChunk = 8192;  // floats of a Hadamard block that fit shared memory

struct Float32 {
  const float* p;
  __device__ __forceinline__ float operator[](int64_t i) const { return p[i]; }
};
struct Float16 {
  const uint16_t* p;
  __device__ __forceinline__ float operator[](int64_t i) const { return __uint_as_float(half_bits(p[i])); }
};
struct Bfloat16 {
  const uint16_t* p;
  __device__ __forceinline__ float operator[](int64_t i) const {
    return __uint_as_float(static_cast<uint32_t>(p[i]) << 16);
  }
};

template <typename F>
int with_reader(Input x, F&& launch) {
  switch (x.dtype) {
    case Dtype::f16:
      return launch(Float16{static_cast<const uint16_t*>(x.data)});
    case Dtype::bf16:
      return launch(Bfloat16{static_cast<const uint16_t*>(x.data)});
    default:
      return launch(Float32{static_cast<const float*>(x.data)});
  }
}

int launched() { return static_cast<int>(cudaGetLastError()); }
unsigned blocks_for(int64_t work) { return static_cast<unsigned>(std::max<int64_t>(1, std::min(work, kMostBlocks))); }

// The levels' tables, as of rounding.h, in shared memory.
struct Tables {
  float inner[kMaxLevels];
  float below[kMaxLevels];
  float gap[kMaxLevels];
};

__device__ __forceinline__ void fill(Tables& tables, DeviceLevels levels) {
  for (int i = threadIdx.x; i < (1 << levels.bits); i += blockDim.x) {
    const int cell = min(i, levels.count - 2);
    tables.inner[i] = i < levels.count - 2 ? levels.data[i + 1] : __uint_as_float(0x7fc00000u);
    tables.below[i] = levels.data[cell];
    tables.gap[i] = levels.data[cell + 1] - levels.data[cell];
  }
}

// Codes of a lane's eight coordinates r, and the words of the tile's groups, stored together.
__device__ __forceinline__ void encode_tile(const float (&r)[kPerLane], const Tables& tables, DeviceLevels levels,
                                            uint64_t tile, uint64_t seed, uint64_t offset, int64_t groups,
                                            uint32_t* words) {
  const int lane = threadIdx.x & 31, bits = levels.bits;
  const Words call = philox(tile * 32 + lane, offset, seed);
  int code[kPerLane];
  if (levels.count <= 16) {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) code[j] = 0;
    for (int level = 0; level < levels.count - 2; ++level) {
      const float at = tables.inner[level];
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) code[j] += r[j] >= at;
    }
  } else {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) code[j] = cell_of(tables.inner, bits, r[j]);
  }
  uint32_t first = 0, second = 0;  // words lane and lane + 32 of the tile
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const float u = uniform(word_of(call, j));
    code[j] += u * tables.gap[code[j]] < r[j] - tables.below[code[j]];
    for (int plane = 0; plane < bits; ++plane) {
      const uint32_t word = __ballot_sync(kAll, (code[j] >> plane) & 1);
      const int slot = j * bits + plane;
      if (slot == lane) first = word;
      if (slot == lane + 32) second = word;
    }
  }
  const int64_t count = min(static_cast<int64_t>(kPerLane), groups) * bits;
  if (lane < count) words[lane] = first;
  if (lane + 32 < count) words[lane + 32] = second;
}

struct Sums {
  double sum;
  double squares;
  uint32_t largest;  // bits of a magnitude: NaN, the largest pattern, wins
};

__device__ __forceinline__ void add(Sums& sums, float value) {
  const double wide = value;
  sums.sum += wide;
  sums.squares += wide * wide;
  sums.largest = max(sums.largest, __float_as_uint(value) & 0x7fffffffu);
}

__device__ __forceinline__ void reduce_warp(Sums& sums) {
#pragma unroll
  for (int width = 16; width > 0; width /= 2) {
    sums.sum += __shfl_xor_sync(kAll, sums.sum, width);
    sums.squares += __shfl_xor_sync(kAll, sums.squares, width);
    sums.largest = max(sums.largest, __shfl_xor_sync(kAll, sums.largest, width));
  }
}

// All threads of the block get the block's sums.
__device__ __forceinline__ Sums reduce_block(Sums sums) {
  __shared__ Sums parts[kWarps];
  reduce_warp(sums);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = sums;
  __syncthreads();
  Sums total = parts[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) {
    total.sum += parts[warp].sum;
    total.squares += parts[warp].squares;
    total.largest = max(total.largest, parts[warp].largest);
  }
  return total;
}

__device__ __forceinline__ float norm_of(const Sums& sums, Norm norm) {
  const float value = norm == Norm::l2 ? static_cast<float>(sqrt(sums.squares)) : __uint_as_float(sums.largest);
  return isfinite(value) ? value : __uint_as_float(0x7fc00000u);
}

// A warp for each bucket (short ones) or a block for each.
template <typename Reader>
__global__ void __launch_bounds__(kThreads) norms_of_short_buckets(Reader x, int64_t n, int64_t bucket_size, Norm norm,
                                                                  int64_t buckets, float* norms) {
  const int lane = threadIdx.x & 31;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t bucket = static_cast<int64_t>(blockIdx.x) * kWarps + (threadIdx.x >> 5); bucket < buckets;
       bucket += step) {
    const int64_t stop = min(n, (bucket + 1) * bucket_size);
    Sums sums{0.0, 0.0, 0u};
    for (int64_t i = bucket * bucket_size + lane; i < stop; i += 32) add(sums, x[i]);
    reduce_warp(sums);
    if (lane == 0) norms[bucket] = norm_of(sums, norm);
  }
}

template <typename Reader>
__global__ void __launch_bounds__(kThreads) norms_of_long_buckets(Reader x, int64_t n, int64_t bucket_size, Norm norm,
                                                                 int64_t buckets, float* norms) {
  for (int64_t bucket = blockIdx.x; bucket < buckets; bucket += gridDim.x) {
    const int64_t stop = min(n, (bucket + 1) * bucket_size);
    Sums sums{0.0, 0.0, 0u};
    for (int64_t i = bucket * bucket_size + threadIdx.x; i < stop; i += kThreads) add(sums, x[i]);
    const Sums total = reduce_block(sums);
    if (threadIdx.x == 0) norms[bucket] = norm_of(total, norm);
  }
}

template <typename Reader>
__global__ void __launch_bounds__(kThreads) statistics_of_buckets(Reader x, int64_t n, int64_t bucket_size, Norm norm,
                                                                 int64_t buckets, double* norms, double* means,
                                                                 double* sigmas) {
  for (int64_t bucket = blockIdx.x; bucket < buckets; bucket += gridDim.x) {
    const int64_t start = bucket * bucket_size, stop = min(n, start + bucket_size);
    Sums sums{0.0, 0.0, 0u};
    for (int64_t i = start + threadIdx.x; i < stop; i += kThreads) add(sums, x[i]);
    const Sums total = reduce_block(sums);
    const double count = static_cast<double>(stop - start), mean = total.sum / count;
    double deviations = fmax(0.0, total.squares - total.sum * mean);
    if (deviations < 1e-9 * total.squares) {  // the difference cancels
      Sums again{0.0, 0.0, 0u};
      for (int64_t i = start + threadIdx.x; i < stop; i += kThreads) {
        const double off = static_cast<double>(x[i]) - mean;
        again.squares += off * off;
      }
      deviations = reduce_block(again).squares;
    }
    if (threadIdx.x == 0) {
      const double size = isfinite(total.squares) ? static_cast<double>(norm_of(total, norm)) : total.squares * 0.0;
      const double divisor = size == 0.0 ? 1.0 : size;
      norms[bucket] = size;
      means[bucket] = mean / divisor;
      sigmas[bucket] = sqrt(deviations / fmax(1.0, count - 1.0)) / divisor;
    }
  }
}

// A warp for each tile; buckets may end within it.
template <typename Reader>
__global__ void __launch_bounds__(kThreads) encode_tiles(Reader x, int64_t n, const float* norms, DeviceLevels levels,
                                                        int64_t bucket_size, uint64_t seed, uint64_t offset,
                                                        uint32_t* words) {
  __shared__ Tables tables;
  fill(tables, levels);
  __syncthreads();
  const int lane = threadIdx.x & 31;
  const int64_t tiles = (n + kTile - 1) / kTile, step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kWarps + (threadIdx.x >> 5); tile < tiles; tile += step) {
    const int64_t start = tile * kTile, first = start / bucket_size;
    const int64_t left = (first + 1) * bucket_size - start;  // of the tile's first bucket
    const Scale whole = scale_of(norms[first]);
    float r[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int within = 32 * j + lane;
      const int64_t i = start + within;
      r[j] = -2.0f;  // beyond the end: code 0
      if (i < n) {
        const Scale scale = within < left ? whole : scale_of(norms[i / bucket_size]);
        r[j] = (x[i] * scale.lift) * scale.inverse;
      }
    }
    encode_tile(r, tables, levels, static_cast<uint64_t>(tile), seed, offset, (n - start + 31) / 32,
                words + start / 32 * levels.bits);
  }
}

// A block for each bucket of kWarps * kTiles tiles, held in registers.
template <int kTiles, typename Reader>
__global__ void __launch_bounds__(kThreads) encode_buckets(Reader x, int64_t n, DeviceLevels levels, Norm norm,
                                                          uint64_t seed, uint64_t offset, int64_t buckets,
                                                          float* norms, uint32_t* words) {
  constexpr int64_t kBucket = static_cast<int64_t>(kTiles) * kWarps * kTile;
  __shared__ Tables tables;
  fill(tables, levels);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (int64_t bucket = blockIdx.x; bucket < buckets; bucket += gridDim.x) {
    const int64_t start = bucket * kBucket;
    float value[kTiles][kPerLane];
    Sums sums{0.0, 0.0, 0u};
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int64_t i = start + (t * kWarps + warp) * kTile + 32 * j + lane;
        value[t][j] = i < n ? x[i] : 0.0f;
      }
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) add(sums, value[t][j]);
    const float size = norm_of(reduce_block(sums), norm);
    if (threadIdx.x == 0) norms[bucket] = size;
    const Scale scale = scale_of(size);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int64_t tile_start = start + (t * kWarps + warp) * kTile;
      if (tile_start >= n) break;
      float r[kPerLane];
#pragma unroll
      for (int j = 0; j < kPerLane; ++j)
        r[j] = tile_start + 32 * j + lane < n ? (value[t][j] * scale.lift) * scale.inverse : -2.0f;
      encode_tile(r, tables, levels, static_cast<uint64_t>(tile_start / kTile), seed, offset,
                  (n - tile_start + 31) / 32, words + tile_start / 32 * levels.bits);
    }
  }
}

__global__ void __launch_bounds__(kThreads) decode_tiles(const uint8_t* rows, int64_t count, int64_t stride,
                                                        int64_t norm_bytes, DeviceLevels levels, int64_t n,
                                                        int64_t bucket_size, float scale, bool plain, const float* add,
                                                        float* out) {
  __shared__ float value[kMaxLevels];
  for (int i = threadIdx.x; i < (1 << levels.bits); i += blockDim.x) value[i] = levels.data[min(i, levels.count - 1)];
  __syncthreads();
  const int lane = threadIdx.x & 31, bits = levels.bits;
  const int64_t tiles = (n + kTile - 1) / kTile, step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kWarps + (threadIdx.x >> 5); tile < tiles; tile += step) {
    const int64_t start = tile * kTile, bucket = start / bucket_size;
    const int64_t left = (bucket + 1) * bucket_size - start;
    const int held = static_cast<int>(min(static_cast<int64_t>(kPerLane), (n - start + 31) / 32)) * bits;
    float sum[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) sum[j] = 0.0f;
    for (int64_t row = 0; row < count; ++row) {
      const uint8_t* payload = rows + row * stride;
      const float* norms = reinterpret_cast<const float*>(payload);
      const uint32_t* words = reinterpret_cast<const uint32_t*>(payload + norm_bytes) + start / 32 * bits;
      const uint32_t first = lane < held ? words[lane] : 0u;
      const uint32_t second = lane + 32 < held ? words[lane + 32] : 0u;
      const float whole = norms[bucket];
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        int code = 0;
        for (int plane = 0; plane < bits; ++plane) {
          const int slot = j * bits + plane;
          const uint32_t word = __shfl_sync(kAll, slot < 32 ? first : second, slot & 31);
          code |= ((word >> lane) & 1u) << plane;
        }
        const int within = 32 * j + lane;
        if (start + within < n) {
          const float norm = within < left ? whole : norms[(start + within) / bucket_size];
          const float term = norm * value[code];
          sum[j] = plain ? term : sum[j] + term;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int64_t i = start + 32 * j + lane;
      if (i < n) out[i] = plain ? sum[j] : add ? add[i] + sum[j] * scale : sum[j] * scale;
    }
  }
}

__device__ __forceinline__ float signed_value(float value, int64_t i, uint64_t seed, uint64_t offset) {
  const int j = static_cast<int>(i % kTile) / 32;
  const Words call = philox(static_cast<uint64_t>(i / kTile) * 32 + i % 32, offset, seed);
  return __uint_as_float(__float_as_uint(value) ^ (word_of(call, j) & 0x80000000u));
}

// Chunks of up to kChunk coordinates, a block each: signs first (forward), butterflies within the chunk, and, when the
// chunk is a whole Hadamard block, the scale and (inverse) the signs.
__global__ void __launch_bounds__(kThreads) hadamard_chunks(const float* x, int64_t chunks, int chunk, bool whole,
                                                           float scale, uint64_t seed, uint64_t offset, bool inverse,
                                                           float* out) {
  extern __shared__ float v[];
  for (int64_t c = blockIdx.x; c < chunks; c += gridDim.x) {
    const int64_t start = c * chunk;
    __syncthreads();
    for (int i = threadIdx.x; i < chunk; i += kThreads)
      v[i] = inverse ? x[start + i] : signed_value(x[start + i], start + i, seed, offset);
    for (int half = 1; half < chunk; half *= 2) {
      __syncthreads();
      for (int pair = threadIdx.x; pair < chunk / 2; pair += kThreads) {
        const int i = (pair / half) * 2 * half + pair % half;
        const float upper = v[i], lower = v[i + half];
        v[i] = upper + lower;
        v[i + half] = upper - lower;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < chunk; i += kThreads) {
      const float value = whole ? v[i] * scale : v[i];
      out[start + i] = whole && inverse ? signed_value(value, start + i, seed, offset) : value;
    }
  }
}

// One stage of butterflies of blocks longer than a chunk; the last one scales and (inverse) signs.
__global__ void __launch_bounds__(kThreads) hadamard_stage(float* v, int64_t pairs, int64_t half, bool last, float scale,
                                                          uint64_t seed, uint64_t offset, bool inverse) {
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; pair < pairs;
       pair += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t i = (pair / half) * 2 * half + pair % half;
    float upper = v[i] + v[i + half], lower = v[i] - v[i + half];
    if (last) {
      upper *= scale;
      lower *= scale;
      if (inverse) {
        upper = signed_value(upper, i, seed, offset);
        lower = signed_value(lower, i + half, seed, offset);
      }
    }
    v[i] = upper;
    v[i + half] = lower;
  }
}

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

int bucket_norms(Input x, int64_t bucket_size, Norm norm, float* norms, void* stream) {
  const int64_t buckets = ceil_divide(x.n, bucket_size);
  if (buckets == 0) return 0;
  return with_reader(x, [&](auto reader) {
    if (bucket_size <= 1024)
      norms_of_short_buckets<<<blocks_for(ceil_divide(buckets, kWarps)), kThreads, 0, stream_of(stream)>>>(
          reader, x.n, bucket_size, norm, buckets, norms);
    else
      norms_of_long_buckets<<<blocks_for(buckets), kThreads, 0, stream_of(stream)>>>(reader, x.n, bucket_size, norm,
                                                                                    buckets, norms);
    return launched();
  });
}

int bucket_statistics(Input x, int64_t bucket_size, Norm norm, double* norms, double* means, double* sigmas,
                      void* stream) {
  const int64_t buckets = ceil_divide(x.n, bucket_size);
  if (buckets == 0) return 0;
  return with_reader(x, [&](auto reader) {
    statistics_of_buckets<<<blocks_for(buckets), kThreads, 0, stream_of(stream)>>>(reader, x.n, bucket_size, norm,
                                                                                  buckets, norms, means, sigmas);
    return launched();
  });
}

int encode(Input x, const float* norms, DeviceLevels levels, int64_t bucket_size, uint64_t seed, uint64_t offset,
           uint32_t* words, void* stream) {
  const int64_t tiles = ceil_divide(x.n, kTile);
  if (tiles == 0) return 0;
  return with_reader(x, [&](auto reader) {
    encode_tiles<<<blocks_for(ceil_divide(tiles, kWarps)), kThreads, 0, stream_of(stream)>>>(
        reader, x.n, norms, levels, bucket_size, seed, offset, words);
    return launched();
  });
}

int encode_fused(Input x, DeviceLevels levels, int64_t bucket_size, Norm norm, uint64_t seed, uint64_t offset,
                 float* norms, uint32_t* words, void* stream) {
  const int64_t buckets = ceil_divide(x.n, bucket_size);
  if (buckets == 0) return 0;
  const unsigned blocks = blocks_for(buckets);
  const cudaStream_t on = stream_of(stream);
  switch (bucket_size) {
    case 2048:
      return with_reader(x, [&](auto reader) {
        encode_buckets<1><<<blocks, kThreads, 0, on>>>(reader, x.n, levels, norm, seed, offset, buckets, norms, words);
        return launched();
      });
    case 4096:
      return with_reader(x, [&](auto reader) {
        encode_buckets<2><<<blocks, kThreads, 0, on>>>(reader, x.n, levels, norm, seed, offset, buckets, norms, words);
        return launched();
      });
    case 8192:
      return with_reader(x, [&](auto reader) {
        encode_buckets<4><<<blocks, kThreads, 0, on>>>(reader, x.n, levels, norm, seed, offset, buckets, norms, words);
        return launched();
      });
    case 16384:
      return with_reader(x, [&](auto reader) {
        encode_buckets<8><<<blocks, kThreads, 0, on>>>(reader, x.n, levels, norm, seed, offset, buckets, norms, words);
        return launched();
      });
    default:
      if (const int error = bucket_norms(x, bucket_size, norm, norms, stream)) return error;
      return encode(x, norms, levels, bucket_size, seed, offset, words, stream);
  }
}

int decode(const uint8_t* rows, int64_t count, int64_t stride, int64_t norm_bytes, DeviceLevels levels, int64_t n,
           int64_t bucket_size, float scale, bool plain, const float* add, float* out, void* stream) {
  const int64_t tiles = ceil_divide(n, kTile);
  if (tiles == 0) return 0;
  decode_tiles<<<blocks_for(ceil_divide(tiles, kWarps)), kThreads, 0, stream_of(stream)>>>(
      rows, count, stride, norm_bytes, levels, n, bucket_size, scale, plain, add, out);
  return launched();
}

int hadamard(const float* x, int64_t n, int64_t block_size, uint64_t seed, uint64_t offset, bool inverse, float* out,
             void* stream) {
  if (n == 0) return 0;
  const int chunk = static_cast<int>(std::min<int64_t>(block_size, kChunk));
  const bool whole = chunk == block_size;
  const float scale = static_cast<float>(1.0 / sqrt(static_cast<double>(block_size)));
  hadamard_chunks<<<blocks_for(n / chunk), kThreads, chunk * sizeof(float), stream_of(stream)>>>(
      x, n / chunk, chunk, whole, scale, seed, offset, inverse, out);
  if (const int error = launched()) return error;
  for (int64_t half = chunk; half < block_size; half *= 2) {
    hadamard_stage<<<blocks_for(ceil_divide(n / 2, kThreads)), kThreads, 0, stream_of(stream)>>>(
        out, n / 2, half, 2 * half == block_size, scale, seed, offset, inverse);
    if (const int error = launched()) return error;
  }
  return 0;
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace lqray::cuda
