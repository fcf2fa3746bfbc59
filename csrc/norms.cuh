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

// Sums of the chunks of a long bucket, and of 1,024 chunks each.
struct LongSums {
  float chunk[kSumChunk];
  float group[kSumChunk];
};

// The sum of squares of a bucket, scaled by `down`, by all threads of the block.
template <typename Reader>
__device__ __forceinline__ float squares_of_bucket(Reader x, int64_t start, int64_t stop, float down, LongSums& sums) {
  const int64_t chunks = ceil_divide(stop - start, kSumChunk);
  const int groups = static_cast<int>(ceil_divide(chunks, kSumChunk));
  for (int group = 0; group < groups; ++group) {
    const int64_t first = static_cast<int64_t>(group) * kSumChunk;
    const int held = static_cast<int>(min(chunks - first, static_cast<int64_t>(kSumChunk)));
    for (int chunk = threadIdx.x >> 5; chunk < held; chunk += kWarps) {
      const int64_t from = start + (first + chunk) * kSumChunk;
      const float sum = squares_of_chunk(x, from, min(stop, from + kSumChunk), down);
      if ((threadIdx.x & 31) == 0) sums.chunk[chunk] = sum;
    }
    __syncthreads();
    const float total = sum_of_chunks(sums.chunk, held);
    if (threadIdx.x == 0) sums.group[group] = total;
    __syncthreads();
  }
  return sum_of_chunks(sums.group, groups);
}

// The largest magnitude of a bucket, by all threads of the block.
template <typename Reader>
__device__ __forceinline__ float largest_of_bucket(Reader x, int64_t start, int64_t stop) {
  __shared__ uint32_t parts[kWarps];
  uint32_t largest = 0;
  for (int64_t i = start + threadIdx.x; i < stop; i += kThreads) largest = max(largest, magnitude(x[i]));
  largest = magnitude(tree_largest(largest));
  __syncthreads();
  if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = largest;
  __syncthreads();
  return finite_or_nan(tree_largest(parts[threadIdx.x & (kWarps - 1)]));
}

// A block for each bucket.
template <Norm kNorm, typename Reader>
__global__ void __launch_bounds__(kThreads) norms_of_long_buckets(Reader x, int64_t n, int64_t bucket_size,
                                                                 int64_t buckets, float* norms) {
  __shared__ LongSums sums;
  for (int64_t bucket = blockIdx.x; bucket < buckets; bucket += gridDim.x) {
    const int64_t start = bucket * bucket_size, stop = min(n, start + bucket_size);
    float norm = kNorm == Norm::linf ? largest_of_bucket(x, start, stop)
                                     : squares_of_bucket(x, start, stop, 1.0f, sums);
    if (kNorm == Norm::l2) {
      Rescaling scaled{1.0f, 1.0f};
      if (__syncthreads_or(!squares_suffice(norm))) {
        scaled = rescaling_of(largest_of_bucket(x, start, stop));
        norm = squares_of_bucket(x, start, stop, scaled.down, sums);
      }
      norm = root_of(norm, scaled.up);
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
      const float kept = finite_or_nan(norm == Norm::l2 ? root : __uint_as_float(total.largest));
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
