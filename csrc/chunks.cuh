// A chunk of 1,024 coordinates, 32 k + lane (k < 32), in the registers of a warp, and the norms of its buckets: of one
// that is several warps' chunks, or of several that fill one.
#pragma once

#include "norms.cuh"

namespace lqray::cuda {

namespace {

constexpr int kValues = kSumChunk / 32;  // of a lane whose warp has a chunk
constexpr int kMostWarps = 16;           // that have the chunks of a bucket

// A chunk that is whole.
template <typename Reader>
__device__ __forceinline__ void read_whole(Reader x, int64_t start, float (&value)[kValues]) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int k = 0; k < kValues; ++k) value[k] = x[start + 32 * k + lane];
}

// A coordinate of a tensor whose dtype no template knows.
__device__ __forceinline__ float value_at(Input x, int64_t i) {
  if (x.dtype == Dtype::f16) return Float16{static_cast<const uint16_t*>(x.data)}[i];
  if (x.dtype == Dtype::bf16) return Bfloat16{static_cast<const uint16_t*>(x.data)}[i];
  return Float32{static_cast<const float*>(x.data)}[i];
}

// A chunk of such a tensor, zeros beyond its end. What is not whole, or of 16 bits, goes through `place`, the warp's own
// for 1,024 values: a loop, which costs more instructions, and less code.
__device__ __forceinline__ void read_chunk(Input x, int64_t start, float (&value)[kValues], float* place) {
  if (x.n - start >= kSumChunk && x.dtype == Dtype::f32)
    return read_whole(Float32{static_cast<const float*>(x.data)}, start, value);
#pragma unroll 1
  for (int i = threadIdx.x & 31; i < kSumChunk; i += 32) place[i] = start + i < x.n ? value_at(x, start + i) : 0.0f;
  read_whole(Float32{place}, 0, value);
}

// Where the values of a chunk are: a lane's in its registers, or those of all in shared memory, each where the lane that
// reads it has put it, so that loops over them need not be unrolled.
struct Held {
  static constexpr int kTurns = kValues;
  const float (&value)[kValues];
  __device__ __forceinline__ float operator[](int k) const { return value[k]; }
};
struct Lying {
  static constexpr int kTurns = 1;
  const float* place;
  __device__ __forceinline__ float operator[](int k) const { return place[32 * k + (threadIdx.x & 31)]; }
};

// Of a CUDA block of which a bucket's sum of squares may not do: the norms of all its buckets.
template <typename Values>
__device__ __forceinline__ float rescaled_norm(Values values, float squares, int first_warp, int warps) {
  __shared__ uint32_t largest_of[kMostWarps];
  __shared__ float squares_of[kMostWarps];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  uint32_t largest = 0;
#pragma unroll Values::kTurns
  for (int k = 0; k < kValues; ++k) largest = max(largest, magnitude(values[k]));
  largest = magnitude(tree_largest(largest));
  if (lane == 0) largest_of[warp] = largest;
  __syncthreads();
  const float most = finite_or_nan(tree_largest(lane < warps ? largest_of[first_warp + lane] : 0u));
  const Rescaling scaled = rescaling_of(most);
  float sum = 0.0f;
#pragma unroll Values::kTurns
  for (int k = 0; k < kValues; ++k) {
    const float small = values[k] * scaled.down;
    sum += small * small;
  }
  sum = tree_sum(sum);
  if (lane == 0) squares_of[warp] = sum;
  __syncthreads();
  sum = tree_sum(lane < warps ? squares_of[first_warp + lane] : 0.0f);
  return squares_suffice(squares) ? root_of(squares, 1.0f) : root_of(sum, scaled.up);
}

// The norm of a bucket of `warps` chunks, one a warp's from `first_warp` on, in all lanes of all of them; by all threads
// of the block, each warp of which has the chunk of some bucket. again: the same values, for what is rescaled. parts: of
// the warps; the next call needs others, or comes after a barrier.
template <Norm kNorm, typename Values>
__device__ __forceinline__ float norm_of_bucket(const float (&value)[kValues], Values again, uint32_t* parts,
                                                int first_warp, int warps) {
  const int lane = threadIdx.x & 31, warp = warp_index();
  if (kNorm == Norm::l2) {
    float squares = value[0] * value[0];
#pragma unroll
    for (int k = 1; k < kValues; ++k) squares += value[k] * value[k];
    squares = tree_sum(squares);
    if (lane == 0) parts[warp] = __float_as_uint(squares);
    // No bucket's sum is too small or too large where none of its parts is, by far.
    const bool rare = __syncthreads_or(!(squares >= kLeastSquares && squares <= kMostSquares / kMostWarps));
    squares = tree_sum(__uint_as_float(lane < warps ? parts[first_warp + lane] : 0u));
    // All lanes alike, which the compiler does not know of a barrier's answer, but of a vote's.
    return __any_sync(kAll, rare) ? rescaled_norm(again, squares, first_warp, warps) : root_of(squares, 1.0f);
  }
  uint32_t largest = 0;
#pragma unroll
  for (int k = 0; k < kValues; ++k) largest = max(largest, magnitude(value[k]));
  largest = magnitude(tree_largest(largest));
  if (lane == 0) parts[warp] = largest;
  __syncthreads();
  return finite_or_nan(tree_largest(lane < warps ? parts[first_warp + lane] : 0u));
}

// The lane that has what belongs to bucket i of a chunk's up to 16, and the bucket of a lane, which may be beyond them.
__device__ __forceinline__ int lane_of_bucket(int i) { return i % 2 * 16 + i / 2; }
__device__ __forceinline__ int bucket_of_lane(int lane) { return lane % 16 * 2 + lane / 16; }

// The norms of the buckets of a chunk, 2^shift rows of 32 coordinates each (1 to 4), which fill it, in their lanes.
template <Norm kNorm, typename Reader>
__device__ __forceinline__ float norms_in_chunk(const float (&value)[kValues], Reader x, int64_t start, int shift) {
  const int lane = threadIdx.x & 31, rows = 1 << shift;
  float part = 0.0f, part_before = 0.0f, own = 0.0f;
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    if (kNorm == Norm::l2) part += value[k] * value[k];
    if (kNorm == Norm::linf) part = __uint_as_float(max(__float_as_uint(part), magnitude(value[k])));
    if (k % 2 && (k & (2 * rows - 1)) == rows - 1) {  // where a bucket of an even number ends
      part_before = part;
      part = 0.0f;
    }
    if (k % 4 == 3 && (k & (2 * rows - 1)) == 2 * rows - 1) {
      const float both = kNorm == Norm::l2 ? tree_sums(part_before, part) : tree_largest_of(part_before, part);
      if (lane % 16 == k >> (shift + 1)) own = both;
      part = 0.0f;
    }
  }
  if (kNorm == Norm::linf) return finite_or_nan(own);
  const bool unknown = bucket_of_lane(lane) < kValues >> shift && !squares_suffice(own);
  float up = 1.0f;
  for (unsigned left = __ballot_sync(kAll, unknown); left != 0; left &= left - 1) {
    const int of = __ffs(static_cast<int>(left)) - 1, bucket = bucket_of_lane(of);
    const int64_t from = start + (static_cast<int64_t>(bucket) << shift) * 32 + lane;
    uint32_t largest = 0;
#pragma unroll 1
    for (int row = 0; row < rows; ++row) largest = max(largest, magnitude(x[from + 32 * row]));
    const Rescaling scaled = rescaling_of(finite_or_nan(tree_largest(largest)));
    float sum = 0.0f;
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
      const float small = x[from + 32 * row] * scaled.down;
      sum += small * small;
    }
    sum = tree_sum(sum);
    if (lane == of) own = sum, up = scaled.up;
  }
  return root_of(own, up);
}

// Of two buckets, of which one's sum of squares does not do: as tree_sums, with squares rescaled by 1 / up where needed.
__device__ __forceinline__ float rescaled_in_place(const float* first, int size, float sums, float& up) {
  const int lane = threadIdx.x & 31;
  uint32_t largest[2] = {0u, 0u};
#pragma unroll 1
  for (int i = lane; i < size; i += 32) {
#pragma unroll
    for (int half = 0; half < 2; ++half) largest[half] = max(largest[half], magnitude(first[half * size + i]));
  }
  const Rescaling scaled =
      rescaling_of(finite_or_nan(tree_largest_of(__uint_as_float(largest[0]), __uint_as_float(largest[1]))));
  const float downs[2] = {__shfl_sync(kAll, scaled.down, 0), __shfl_sync(kAll, scaled.down, 16)};
  float squares[2] = {0.0f, 0.0f};
#pragma unroll 1
  for (int i = lane; i < size; i += 32) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float small = first[half * size + i] * downs[half];
      squares[half] += small * small;
    }
  }
  const float rescaled = tree_sums(squares[0], squares[1]);
  if (squares_suffice(sums)) return sums;
  up = scaled.up;
  return rescaled;
}

// Their norms where the chunk lies in shared memory, every value where the lane that reads it here has put it: a loop over
// two buckets at a time.
template <Norm kNorm>
__device__ __forceinline__ float norms_in_place(const float* place, int shift) {
  const int lane = threadIdx.x & 31, size = 32 << shift;
  float own = 0.0f;
#pragma unroll 1
  for (int pair = 0; 2 * pair < kValues >> shift; ++pair) {
    const float* first = place + 2 * pair * size;
    float squares[2] = {0.0f, 0.0f};
    uint32_t largest[2] = {0u, 0u};
#pragma unroll 1
    for (int i = lane; i < size; i += 32) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float value = first[half * size + i];
        if (kNorm == Norm::l2) squares[half] += value * value;
        if (kNorm == Norm::linf) largest[half] = max(largest[half], magnitude(value));
      }
    }
    float both, up = 1.0f;
    if (kNorm == Norm::l2) {
      both = tree_sums(squares[0], squares[1]);
      if (__any_sync(kAll, !squares_suffice(both))) both = rescaled_in_place(first, size, both, up);
      both = root_of(both, up);
    } else {
      const float most = tree_largest_of(__uint_as_float(largest[0]), __uint_as_float(largest[1]));
      both = finite_or_nan(most);
    }
    if (lane % 16 == pair) own = both;
  }
  return own;
}

// Of a chunk in shared memory the values times the lifts of their buckets, which lie in their lanes.
__device__ __forceinline__ void lift_in_place(float* place, float lift, int shift) {
#pragma unroll 1
  for (int k = 0; k < kValues; ++k)
    place[32 * k + (threadIdx.x & 31)] *= __shfl_sync(kAll, lift, lane_of_bucket(k >> shift));
}

// The values times the scales of their buckets, which lie in their lanes.
__device__ __forceinline__ void scale_chunk(float (&value)[kValues], Scale scale, int shift) {
  if (__any_sync(kAll, scale.lift != 1.0f))
#pragma unroll
    for (int k = 0; k < kValues; ++k) value[k] *= __shfl_sync(kAll, scale.lift, lane_of_bucket(k >> shift));
  float inverse = 0.0f;
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    if (k % 2 == 0) inverse = __shfl_sync(kAll, scale.inverse, lane_of_bucket(k >> shift));
    value[k] *= inverse;
  }
}

}  // namespace

}  // namespace lqray::cuda
