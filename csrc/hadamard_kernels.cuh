// The Walsh-Hadamard transform as an operator of its own: kernels of spans, and of blocks longer than one in stages.
#pragma once

#include "hadamard.cuh"

namespace lqray::cuda {

namespace {

// Spans of up to kSpan of n coordinates, of which x has the first, and the others are zeros. Their Hadamard blocks are
// `chunk` long or longer: signs first (forward), butterflies within the chunk, and, when the chunk is a whole block, the
// scale and (inverse) the signs.
__global__ void __launch_bounds__(kThreads) hadamard_spans(Input x, int64_t n, int chunk, bool whole, float scale,
                                                          Random random, bool inverse, float* out) {
  __shared__ float span[kSpan];
  __shared__ Signs<kSpanTiles> signs[2];  // in turn, so that one barrier is enough
  const int lane = threadIdx.x & 31, warp = warp_index();
  int turn = 0;
  for (int64_t start = static_cast<int64_t>(blockIdx.x) * kSpan; start < n;
       start += static_cast<int64_t>(gridDim.x) * kSpan, turn ^= 1) {
    const int64_t first = start + warp * kChunk;
    float v[kRows];
    read_chunk(x, first, v, span + warp * kChunk);
    fill(signs[turn], start, kSignTile, random);
    __syncthreads();
    const uint32_t word = signs[turn].word[warp][lane];
    if (!inverse) apply_signs(v, word);
    transform_span(v, span, chunk);
    if (whole) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) v[k] *= scale;
      if (inverse) apply_signs(v, word);
    }
    const int left = static_cast<int>(min(n - first, static_cast<int64_t>(kChunk))) - lane;
#pragma unroll
    for (int k = 0; k < kRows; ++k)
      if (32 * k < left) out[first + lane + 32 * k] = v[k];
  }
}

// Butterflies between kCount spans or more, of blocks longer than a span: of coordinates 2^shift apart, for a tile of
// signs a CUDA block; the last such stage scales and (inverse) signs.
template <int kCount>
__global__ void __launch_bounds__(kThreads) hadamard_stage(float* v, int64_t n, int shift, bool last, float scale,
                                                          Random random, bool inverse) {
  __shared__ Signs<kCount> signs[2];
  const int64_t unit = int64_t{1} << shift;
  const int lane = threadIdx.x & 31;
  int turn = 0;
  for (int64_t column = static_cast<int64_t>(blockIdx.x) * kSignTile; column < n / kCount;
       column += static_cast<int64_t>(gridDim.x) * kSignTile, turn ^= 1) {
    const int64_t first = (column >> shift) * unit * kCount + (column & (unit - 1));
    fill(signs[turn], first, unit, random);
    __syncthreads();
    for (int row = warp_index(); row < kSignTile / 32; row += kWarps) {
      float* at = v + first + 32 * row + lane;
      float value[kCount];
#pragma unroll
      for (int part = 0; part < kCount; ++part) value[part] = at[part * unit];
      butterflies(value, 1, kCount);
#pragma unroll
      for (int part = 0; part < kCount; ++part) {
        if (last) value[part] *= scale;
        if (last && inverse)
          value[part] = signed_by(value[part], signs[turn].word[4 * part + row / kRows][lane], row % kRows);
        at[part * unit] = value[part];
      }
    }
  }
}

}  // namespace

}  // namespace lqray::cuda
