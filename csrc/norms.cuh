// Norms and statistics of buckets. docs/wire-format.md pins the order in which squares are summed: chunks of 1,024, of
// which lane l sums the coordinates 32 k + l, then the lanes' tree, then the sums of chunks alike.
#pragma once

#include "tiles.cuh"

namespace lqray::cuda {

namespace {

// The sum of the lanes' values, in all lanes, and the largest.
__device__ __forceinline__ float tree_sum(float sum) {
#pragma unroll
  for (int width = 16; width > 0; width /= 2) sum += __shfl_xor_sync(kAll, sum, width);
  return sum;
}

__device__ __forceinline__ float tree_largest(uint32_t largest) {
#pragma unroll
  for (int width = 16; width > 0; width /= 2) largest = max(largest, __shfl_xor_sync(kAll, largest, width));
  return __uint_as_float(largest);
}

// Of two buckets at once: the sum of the lanes' a in lanes below 16, that of their b in the others.
__device__ __forceinline__ float tree_sums(float a, float b) {
  const bool upper = threadIdx.x & 16;
  float sum = (upper ? b : a) + __shfl_xor_sync(kAll, upper ? a : b, 16);
#pragma unroll
  for (int width = 8; width > 0; width /= 2) sum += __shfl_xor_sync(kAll, sum, width);
  return sum;
}

// The largest magnitudes alike.
__device__ __forceinline__ float tree_largest_of(float a, float b) {
  const bool upper = threadIdx.x & 16;
  uint32_t largest = __float_as_uint(upper ? b : a);
  largest = max(largest, __float_as_uint(__shfl_xor_sync(kAll, upper ? a : b, 16)));
#pragma unroll
  for (int width = 8; width > 0; width /= 2) largest = max(largest, __shfl_xor_sync(kAll, largest, width));
  return __uint_as_float(largest);
}

// As integers, so that NaN, the largest of all bit patterns, wins.
__device__ __forceinline__ uint32_t magnitude(float value) { return __float_as_uint(value) & 0x7fffffffu; }

// What a warp makes of the coordinates [start, stop), at most a chunk of 1,024: the sum of squares, scaled by `down`.
template <typename Reader>
__device__ __forceinline__ float squares_of_chunk(Reader x, int64_t start, int64_t stop, float down) {
  float sum = 0.0f;
  for (int64_t i = start + (threadIdx.x & 31); i < stop; i += 32) {
    const float value = x[i] * down;
    sum += value * value;
  }
  return tree_sum(sum);
}

// The sum of values that lie in shared memory, at most 1,024 of them.
__device__ __forceinline__ float sum_of_chunks(const float* values, int count) {
  float sum = 0.0f;
  for (int i = threadIdx.x & 31; i < count; i += 32) sum += values[i];
  return tree_sum(sum);
}

// The largest magnitude of what the warp reads, in all lanes.
template <typename Reader>
__device__ __forceinline__ float largest_of_chunk(Reader x, int64_t start, int64_t stop) {
  uint32_t largest = 0;
  for (int64_t i = start + (threadIdx.x & 31); i < stop; i += 32) largest = max(largest, magnitude(x[i]));
  return finite_or_nan(tree_largest(largest));
}

// A warp for each bucket of at most a chunk of 1,024.
template <Norm kNorm, typename Reader>
__global__ void __launch_bounds__(kThreads) norms_of_short_buckets(Reader x, int64_t n, int64_t bucket_size,
                                                                  int64_t buckets, float* norms) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t bucket = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index(); bucket < buckets; bucket += step) {
    const int64_t start = bucket * bucket_size, stop = min(n, start + bucket_size);
    float norm = kNorm == Norm::l2 ? squares_of_chunk(x, start, stop, 1.0f) : largest_of_chunk(x, start, stop);
    if (kNorm == Norm::l2) {
      Rescaling scaled{1.0f, 1.0f};
      if (__any_sync(kAll, !squares_suffice(norm))) {  // of all lanes alike
        scaled = rescaling_of(largest_of_chunk(x, start, stop));
        norm = squares_of_chunk(x, start, stop, scaled.down);
      }
      norm = root_of(norm, scaled.up);
    }
    if ((threadIdx.x & 31) == 0) norms[bucket] = norm;
  }
}

// Of long buckets: how many chunks one has, all of them, and a place for the sum and the largest magnitude of each.
struct Chunks {
  Divisor of_bucket;
  int64_t count;
  float* sums;
  uint32_t* largest;
};

// A norm that is not known yet, since the bucket's sum of squares does not do, is the bucket's largest magnitude,
// negative; no norm is. Its rescaling, or none.
__device__ __forceinline__ Rescaling rescaling_of_unknown(float norm) {
  return norm < 0.0f ? rescaling_of(-norm) : Rescaling{1.0f, 1.0f};
}

// A warp for each chunk of buckets that are longer. kAgain: sums of rescaled squares, of buckets of unknown norms.
template <Norm kNorm, bool kAgain, typename Reader>
__global__ void __launch_bounds__(kThreads) sums_of_chunks(Reader x, int64_t n, int64_t bucket_size, Chunks chunks,
                                                          const float* norms) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t chunk = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index(); chunk < chunks.count; chunk += step) {
    const int64_t bucket = chunks.of_bucket.of(chunk), first = bucket * bucket_size;
    const int64_t start = first + (chunk - bucket * chunks.of_bucket.divisor) * kSumChunk;
    const int64_t stop = min(min(n, first + bucket_size), start + kSumChunk);
    float down = 1.0f;
    if (kAgain) {
      const float norm = uniform_of(norms[bucket]);
      if (!(norm < 0.0f)) continue;
      down = rescaling_of_unknown(norm).down;
    }
    float sum = 0.0f;
    uint32_t largest = 0;
    for (int64_t i = start + (threadIdx.x & 31); i < stop; i += 32) {
      const float value = x[i], scaled = value * down;
      if (kNorm == Norm::l2) sum += scaled * scaled;
      if (!kAgain) largest = max(largest, magnitude(value));
    }
    if (kNorm == Norm::l2) sum = tree_sum(sum);
    if (!kAgain) largest = magnitude(tree_largest(largest));
    if ((threadIdx.x & 31) == 0) {
      if (kNorm == Norm::l2) chunks.sums[chunk] = sum;
      if (!kAgain) chunks.largest[chunk] = largest;
    }
  }
}

// What a warp makes of at most 1,024 chunks, `count` from `first` on: their sum and their largest magnitude.
template <Norm kNorm>
__device__ __forceinline__ float sum_of_group(Chunks chunks, int64_t first, int64_t count, uint32_t& largest) {
  float sum = 0.0f;
  for (int64_t i = first + (threadIdx.x & 31); i < first + count; i += 32) {
    if (kNorm == Norm::l2) sum += chunks.sums[i];
    largest = max(largest, chunks.largest[i]);
  }
  return kNorm == Norm::l2 ? tree_sum(sum) : 0.0f;
}

// The norms of long buckets, of their chunks' sums: a block for each bucket, of as many warps as the bucket has groups
// of 1,024 chunks, at most kWarps. kAgain: of unknown norms.
template <Norm kNorm, bool kAgain>
__global__ void __launch_bounds__(kThreads) norms_of_chunks(Chunks chunks, int64_t buckets, float* norms) {
  __shared__ float sums[kSumChunk];
  __shared__ uint32_t parts[kWarps];
  const int lane = threadIdx.x & 31, warp = warp_index(), warps = static_cast<int>(blockDim.x) / 32;
  for (int64_t bucket = blockIdx.x; bucket < buckets; bucket += gridDim.x) {
    const float before = kAgain ? norms[bucket] : -1.0f;
    __syncthreads();  // the bucket before, and this one's norm, have been read
    if (!(before < 0.0f)) continue;
    const int64_t first = bucket * chunks.of_bucket.divisor;
    const int64_t count = min(chunks.of_bucket.divisor, chunks.count - first);
    const int groups = static_cast<int>(ceil_divide(count, kSumChunk));
    uint32_t largest = 0;
    for (int group = warp; group < groups; group += warps) {
      const int64_t from = static_cast<int64_t>(group) * kSumChunk;
      const float sum = sum_of_group<kNorm>(chunks, first + from, min(count - from, static_cast<int64_t>(kSumChunk)),
                                            largest);
      if (lane == 0) sums[group] = sum;
    }
    largest = magnitude(tree_largest(largest));
    if (lane == 0) parts[warp] = largest;
    __syncthreads();
    const float most = finite_or_nan(tree_largest(lane < warps ? parts[lane] : 0u));
    float norm = most;
    if (kNorm == Norm::l2) {
      const float squares = sum_of_chunks(sums, groups);
      if (kAgain)
        norm = root_of(squares, rescaling_of_unknown(before).up);
      else if (squares_suffice(squares))
        norm = root_of(squares, 1.0f);
      else
        norm = most > 0.0f ? -most : most;  // 0 and NaN are known
    }
    if (threadIdx.x == 0) norms[bucket] = norm;
  }
}

// What statistics need of a bucket; here alone in float64.
struct Sums {
  double sum;
  double squares;
  uint32_t largest;  // bits of a magnitude: NaN, the largest pattern, wins
};

__device__ __forceinline__ void add(Sums& sums, float value) {
  const double wide = value;
  sums.sum += wide;
  sums.squares += wide * wide;
  sums.largest = max(sums.largest, magnitude(value));
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

// Of a short bucket.
__global__ void scale_norm(float* norm, float of_short) { *norm = finite_or_nan(*norm * of_short); }

template <typename Reader>
__global__ void __launch_bounds__(kThreads) statistics_of_buckets(Reader x, int64_t n, int64_t bucket_size, NormOf norm,
                                                                 int64_t buckets, double* norms, double* means,
                                                                 double* sigmas) {
  for (int64_t bucket = blockIdx.x; bucket < buckets; bucket += gridDim.x) {
    const int64_t start = bucket * bucket_size, stop = min(n, start + bucket_size);
    Sums sums{0.0, 0.0, 0u};
    for (int64_t i = start + threadIdx.x; i < stop; i += kThreads) add(sums, x[i]);
    const Sums total = reduce_block(sums);
    const double count = static_cast<double>(stop - start), mean = total.sum / count;
    double deviations = fmax(0.0, total.squares - total.sum * mean);
    if (__syncthreads_or(deviations < 1e-9 * total.squares)) {  // the difference cancels
      Sums again{0.0, 0.0, 0u};
      for (int64_t i = start + threadIdx.x; i < stop; i += kThreads) {
        const double off = static_cast<double>(x[i]) - mean;
        again.squares += off * off;
      }
      deviations = reduce_block(again).squares;
    }
    if (threadIdx.x == 0) {
      const float root = static_cast<float>(sqrt(total.squares));
      const float value = norm.kind == Norm::l2 ? root : __uint_as_float(total.largest);
      const float kept = finite_or_nan(stop - start < bucket_size ? value * norm.of_short : value);
      const double size = isfinite(total.squares) ? static_cast<double>(kept) : total.squares * 0.0;
      const double divisor = size == 0.0 ? 1.0 : size;
      norms[bucket] = size;
      means[bucket] = mean / divisor;
      sigmas[bucket] = sqrt(deviations / fmax(1.0, count - 1.0)) / divisor;
    }
  }
}

}  // namespace

}  // namespace lqray::cuda
