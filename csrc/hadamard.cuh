// The Walsh-Hadamard transform of blocks of coordinates, with random signs before it, or after its inverse.
#pragma once

#include "tiles.cuh"

namespace lqray::cuda {

namespace {

constexpr int kRows = 32;  // of 32 coordinates, of a warp: in its registers
// Coordinates of a CUDA block: butterflies within it need no other memory.
constexpr int kSpan = kWarps * kRows * 32;

__device__ __forceinline__ float signed_by(float value, const Words& call, int j) {
  return __uint_as_float(__float_as_uint(value) ^ (word_of(call, j) & 0x80000000u));
}

// The signs of a warp's coordinates, of which the first tile is given.
__device__ __forceinline__ void apply_signs(float (&v)[kRows], int64_t first_tile, const Random& random) {
#pragma unroll
  for (int t = 0; t < kRows / kPerLane; ++t) {
    const Words call = random(static_cast<uint64_t>(first_tile + t) * 32 + (threadIdx.x & 31));
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) v[t * kPerLane + j] = signed_by(v[t * kPerLane + j], call, j);
  }
}

// Butterflies of coordinates less than 1,024 apart, and less than `chunk`: between lanes, then between rows.
__device__ __forceinline__ void transform_in_warp(float (&v)[kRows], int chunk) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int half = 1; half < 32; half *= 2) {
    if (half < chunk) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        const float other = __shfl_xor_sync(kAll, v[k], half);
        v[k] = lane & half ? other - v[k] : v[k] + other;
      }
    }
  }
#pragma unroll
  for (int rows = 1; rows < kRows; rows *= 2) {
    if (32 * rows < chunk) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        if (k & rows) continue;
        const float upper = v[k], lower = v[k + rows];
        v[k] = upper + lower;
        v[k + rows] = upper - lower;
      }
    }
  }
}

// Butterflies of coordinates 1,024 apart and more, between the warps of a CUDA block: each thread has, for four places
// of a warp, the values of all warps.
__device__ __forceinline__ void transform_between_warps(float* span, int chunk) {
#pragma unroll
  for (int place = threadIdx.x; place < kRows * 32; place += kThreads) {
    float v[kWarps];
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) v[warp] = span[warp * kRows * 32 + place];
#pragma unroll
    for (int apart = 1; apart < kWarps; apart *= 2) {
      if (apart * kRows * 32 < chunk) {
#pragma unroll
        for (int warp = 0; warp < kWarps; ++warp) {
          if (warp & apart) continue;
          const float upper = v[warp], lower = v[warp + apart];
          v[warp] = upper + lower;
          v[warp + apart] = upper - lower;
        }
      }
    }
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) span[warp * kRows * 32 + place] = v[warp];
  }
}

// Spans of up to kSpan coordinates, whose Hadamard blocks are `chunk` long or longer: signs first (forward),
// butterflies within the chunk, and, when the chunk is a whole block, the scale and (inverse) the signs.
__global__ void __launch_bounds__(kThreads) hadamard_spans(const float* x, int64_t n, int chunk, bool whole,
                                                          float scale, Random random, bool inverse, float* out) {
  __shared__ float span[kSpan];
  const int lane = threadIdx.x & 31, within = warp_index() * kRows * 32 + lane;
  for (int64_t start = static_cast<int64_t>(blockIdx.x) * kSpan; start < n;
       start += static_cast<int64_t>(gridDim.x) * kSpan) {
    const int64_t first = start + within, first_tile = (first - lane) / kTile;
    float v[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) v[k] = first + 32 * k < n ? x[first + 32 * k] : 0.0f;
    if (!inverse) apply_signs(v, first_tile, random);
    transform_in_warp(v, chunk);
    if (chunk > kRows * 32) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) span[within + 32 * k] = v[k];
      __syncthreads();
      transform_between_warps(span, chunk);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kRows; ++k) v[k] = span[within + 32 * k];
    }
    if (whole) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) v[k] *= scale;
      if (inverse) apply_signs(v, first_tile, random);
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k)
      if (first + 32 * k < n) out[first + 32 * k] = v[k];
  }
}

__device__ __forceinline__ float signed_value(float value, int64_t i, const Random& random) {
  const Words call = random(static_cast<uint64_t>(i / kTile) * 32 + i % 32);
  return signed_by(value, call, static_cast<int>(i % kTile) / 32);
}

// One stage of butterflies `half` = 2^shift apart, of blocks longer than a span; the last one scales and (inverse)
// signs.
__global__ void __launch_bounds__(kThreads) hadamard_stage(float* v, int64_t pairs, int shift, bool last, float scale,
                                                          Random random, bool inverse) {
  const int64_t half = int64_t{1} << shift;
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; pair < pairs;
       pair += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t i = ((pair >> shift) << (shift + 1)) + (pair & (half - 1));
    float upper = v[i] + v[i + half], lower = v[i] - v[i + half];
    if (last) {
      upper *= scale;
      lower *= scale;
      if (inverse) {
        upper = signed_value(upper, i, random);
        lower = signed_value(lower, i + half, random);
      }
    }
    v[i] = upper;
    v[i + half] = lower;
  }
}

}  // namespace

}  // namespace lqray::cuda
