// The Walsh-Hadamard transform of blocks of coordinates, and the random signs before it, or after its inverse.
#pragma once

#include "chunks.cuh"

namespace lqray::cuda {

namespace {

constexpr int kRows = kValues;          // of 32 coordinates, of a warp: in its registers
constexpr int kChunk = kRows * 32;      // coordinates of a warp
constexpr int kSpan = kWarps * kChunk;  // of a CUDA block: butterflies within it need no other memory
constexpr int kSpanTiles = kSpan / kSignTile;

// Of tiles of signs the words of their calls, which the threads of a CUDA block share. The word of row k's coordinate
// `lane` of a chunk of 1,024 has its sign in bit k.
template <int kTiles>
struct Signs {
  uint32_t word[kTiles * kSignTile / kChunk][32];
};

// By all threads of the block, of the tiles that begin at `first`, `apart` from each other; a barrier has to follow.
template <int kTiles>
__device__ __forceinline__ void fill(Signs<kTiles>& signs, int64_t first, int64_t apart, const Random& random) {
  const int tile = threadIdx.x >> 5, lane = threadIdx.x & 31;
  if (tile >= kTiles) return;
  const Words call = random(static_cast<uint64_t>(first + tile * apart) / kSignTile * 32 + lane);
#pragma unroll
  for (int m = 0; m < 4; ++m) signs.word[4 * tile + m][lane] = call.w[m];
}

__device__ __forceinline__ float signed_by(float value, uint32_t word, int row) {
  return __uint_as_float(__float_as_uint(value) ^ ((word << (31 - row)) & 0x80000000u));
}

__device__ __forceinline__ void apply_signs(float (&v)[kRows], uint32_t word) {
#pragma unroll
  for (int k = 0; k < kRows; ++k) v[k] = signed_by(v[k], word, k);
}

// Butterflies between the values of a thread, `unit` coordinates apart, of which `chunk` are transformed, between kLeast
// and kMost.
template <int kCount, int kLeast = 1, int kMost = kSpan>
__device__ __forceinline__ void butterflies(float (&v)[kCount], int unit, int chunk) {
#pragma unroll
  for (int apart = 1; apart < kCount; apart *= 2) {
    if (apart * unit < kMost && (apart * unit < kLeast || apart * unit < chunk)) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (!(k & apart)) butterfly(v[k], v[k + apart]);
      }
    }
  }
}

// Butterflies of coordinates less than 1,024 apart, and less than `chunk`, which is between kLeast and kMost: between
// lanes, then between rows. A lane's side of a butterfly is one instruction: a product with 1 or -1 is exact, and not
// rounded. The loop is not unrolled, since five times its code would be too long.
template <int kLeast, int kMost>
__device__ __forceinline__ void transform_in_warp(float (&v)[kRows], int chunk) {
#pragma unroll 1
  for (int half = 1; half < (kLeast < 32 ? min(32, chunk) : 32); half *= 2) {
    const float side = threadIdx.x & half ? -1.0f : 1.0f;
#pragma unroll
    for (int k = 0; k < kRows; ++k) v[k] = fmaf(v[k], side, __shfl_xor_sync(kAll, v[k], half));
  }
  butterflies<kRows, kLeast, kMost>(v, 32, chunk);
}

// Butterflies of coordinates 1,024 apart and more, between the warps of a CUDA block: each thread has, for four places
// of a warp, the values of all warps.
__device__ __forceinline__ void transform_between_warps(float* span, int chunk) {
#pragma unroll 1
  for (int place = threadIdx.x; place < kChunk; place += kThreads) {
    float v[kWarps];
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) v[warp] = span[warp * kChunk + place];
    butterflies(v, kChunk, chunk);
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) span[warp * kChunk + place] = v[warp];
  }
}

// All butterflies within a span, by all threads of the block.
template <int kLeast = 1>
__device__ __forceinline__ void transform_span(float (&v)[kRows], float* span, int chunk) {
  const int within = warp_index() * kChunk + (threadIdx.x & 31);
  transform_in_warp<kLeast, kSpan>(v, chunk);
  if (chunk > kChunk) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) span[within + 32 * k] = v[k];
    __syncthreads();
    transform_between_warps(span, chunk);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kRows; ++k) v[k] = span[within + 32 * k];
  }
}

}  // namespace

}  // namespace lqray::cuda
