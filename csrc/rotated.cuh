// Encoding of buckets that are rotated first, without a way through memory between the two.
#pragma once

#include "codes.cuh"
#include "hadamard.cuh"

namespace lqray::cuda {

namespace {

// A warp's chunk of a tensor of n coordinates, in buckets of 2^shift.
struct Chunk {
  int64_t start;
  int64_t n;
  int shift;
};

// The norm of a bucket that is this warp's chunk, which lies in `place` as well, or that of several warps, in all lanes,
// and in its place among the norms.
template <Norm kNorm>
__device__ __forceinline__ float long_norm(const float (&v)[kRows], const float* place, Chunk chunk,
                                           uint32_t* parts, float* norms) {
  const int warp = warp_index(), warps = 1 << chunk.shift >> 10, first_warp = warp & -warps;
  const float norm = uniform_of(norm_of_bucket<kNorm>(v, Lying{place}, parts, first_warp, warps));
  if ((threadIdx.x & 31) == 0 && warp == first_warp && chunk.start < chunk.n) norms[chunk.start >> chunk.shift] = norm;
  return norm;
}

// The norms of the buckets that fill a chunk, as norms_in_place, and in their places among the norms.
template <Norm kNorm>
__device__ __forceinline__ float short_norms(const float* place, Chunk chunk, float* norms) {
  const int shift = chunk.shift - 5, bucket = bucket_of_lane(threadIdx.x & 31);
  const float norm = norms_in_place<kNorm>(place, shift);
  const int64_t before = chunk.start >> chunk.shift, left = (chunk.n >> chunk.shift) - before;
  if (bucket < kRows >> shift && bucket < left) norms[before + bucket] = norm;
  return norm;
}

// Buckets of 2^shift coordinates, 1,024 to 8,192 of them (kLong) or 64 to 512, of which n is whole ones: x, and zeros
// beyond its end, times random signs, through the Hadamard transform, then norms and codes. A warp has a chunk of 1,024
// in its registers while it is transformed, and then in shared memory, where its tiles are encoded one after the other.
template <int kBits, Norm kNorm, bool kLong>
__global__ void __launch_bounds__(kThreads) encode_rotated(Input x, int64_t n, int shift, float root, Random signs_of,
                                                          DeviceLevels levels, Random random, float* norms,
                                                          uint32_t* words) {
  __shared__ Tables<kBits> tables;
  __shared__ TileWords<kBits> places[kWarps];
  __shared__ float span[kSpan];
  __shared__ Signs<kSpanTiles> signs[2];  // in turn, so that one barrier is enough
  __shared__ uint32_t parts[kWarps];
  fill(tables, levels);
  __syncthreads();
  const int lane = threadIdx.x & 31, warp = warp_index();
  const float middle = tables.middle();
  float* place = span + warp * kChunk;
  int turn = 0;
  for (int64_t start = static_cast<int64_t>(blockIdx.x) * kSpan; start < n;
       start += static_cast<int64_t>(gridDim.x) * kSpan, turn ^= 1) {
    const Chunk chunk{start + warp * kChunk, n, shift};
    float v[kRows];
    read_chunk(x, chunk.start, v, place);
    fill(signs[turn], start, kSignTile, signs_of);
    __syncthreads();
    apply_signs(v, signs[turn].word[warp][lane]);
    if (kLong)
      transform_span<kChunk>(v, span, 1 << shift);
    else
      transform_in_warp<64, 512>(v, 1 << shift);
#pragma unroll
    for (int k = 0; k < kRows; ++k) place[32 * k + lane] = v[k] *= root;
    const Scale scale = scale_of(kLong ? long_norm<kNorm>(v, place, chunk, parts, norms)
                                       : short_norms<kNorm>(place, chunk, norms));
    const int rows = kLong ? 5 : shift - 5;  // of a bucket in a chunk, as a power of two
    if (__any_sync(kAll, scale.lift != 1.0f)) lift_in_place(place, scale.lift, rows);
    const int left = static_cast<int>(min(n - chunk.start, static_cast<int64_t>(kChunk)));
#pragma unroll 1
    for (int k = 0; 32 * k < left; k += kPerLane) {
      float r[kPerLane], inverse = scale.inverse;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        if (!kLong && j % 2 == 0) inverse = __shfl_sync(kAll, scale.inverse, lane_of_bucket((k + j) >> rows));
        r[j] = place[32 * (k + j) + lane] * inverse;
      }
      const int64_t group = chunk.start / 32 + k;
      encode_tile<kBits>(r, tables, middle, static_cast<uint64_t>(group / kPerLane), random,
                         kBits * (kLong ? kPerLane : min(kPerLane, left / 32 - k)), places[warp], words + group * kBits);
    }
  }
}

}  // namespace

}  // namespace lqray::cuda
