// CUDA kernels of rotated blocks, whose codes have widths of their own: docs/wire-format.md, "Rotated blocks". A CUDA
// block works on a span of 8,192 coordinates, whole blocks, a warp on 1,024 of them: in its registers while they are
// transformed, in shared memory while they are coded, a row of 32 at a time, of which a bit plane is one ballot.
#include "blocks_cuda.h"
#include "hadamard.cuh"
#include "launch.cuh"

namespace lqray::cuda {

namespace {

constexpr int kChunkShift = 10;  // a warp's chunk, as a power of two
constexpr float kNan = __builtin_nanf("");
static_assert(kMostBlock == kSpan && kChunk == 1 << kChunkShift);

// The centroids of every width, and the edges between them at the same places: (c_i + c_{i+1}) / 2. What follows the last
// centroid of a width is never asked for.
struct Centroids {
  float value[kCentroids];
  float edge[kCentroids];
};

// By all threads of the block; a barrier has to follow.
__device__ __forceinline__ void fill(Centroids& table, const float* centroids) {
  for (int i = threadIdx.x; i < kCentroids; i += kThreads) {
    table.value[i] = centroids[i];
    table.edge[i] = (centroids[min(i + 1, kCentroids - 1)] + centroids[i]) * 0.5f;
  }
}

// What a warp has of a block of 2^shift coordinates.
struct Part {
  int64_t block;
  int rows;       // of 32 coordinates
  int first_row;  // in the block
};

// The warp's part that begins at a coordinate.
__device__ __forceinline__ Part part_at(int64_t start, int shift) {
  const int within = static_cast<int>(start & ((int64_t{1} << shift) - 1));
  return Part{start >> shift, 1 << (min(shift, kChunkShift) - 5), within / 32};
}

// The words of the part's codes.
__device__ __forceinline__ int64_t words_before(const Part& part, int64_t begin, int width, int shift) {
  return (begin << (shift - 5)) + part.first_row * width;
}

// Codes of `rows` rows of coordinates, which lie in `place`, each times the factor: how many edges are at most that. The
// sum of the lane's products with their centroids.
__device__ __forceinline__ float code_rows(const float* place, int rows, float factor, int width,
                                           const Centroids& table, uint32_t* words) {
  const int lane = threadIdx.x & 31, from = (1 << width) - 2;
  float dot = 0.0f;
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    const float y = place[32 * row + lane] * factor;
    const int code = cell_of(table.edge + from, width, y);
    dot += y * table.value[from + code];
    uint32_t own = 0;
#pragma unroll 1
    for (int plane = 0; plane < width; ++plane) {
      const uint32_t word = __ballot_sync(kAll, code >> plane & 1);
      if (lane == plane) own = word;
    }
    if (lane < width) words[row * width + lane] = own;
  }
  return dot;
}

// The centroids that such codes stand for, in `place`.
__device__ __forceinline__ void read_rows(const uint32_t* words, int rows, int width, const Centroids& table,
                                          float* place) {
  const int lane = threadIdx.x & 31, from = (1 << width) - 2;
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    int code = 0;
    for (int plane = 0; plane < width; ++plane) code |= static_cast<int>(words[row * width + plane] >> lane & 1) << plane;
    place[32 * row + lane] = table.value[from + code];
  }
}

__device__ __forceinline__ void fill_rows(float value, int rows, float* place) {
  for (int row = 0; row < rows; ++row) place[32 * row + (threadIdx.x & 31)] = value;
}

// The block's dot product of what its warps' lanes have, in lane 0 of its first warp; of blocks of a chunk at most, every
// warp has its own. By all threads of the CUDA block.
__device__ __forceinline__ float dot_of_block(float dot, int shift, float* sums) {
  dot = tree_sum(dot);
  if (shift <= kChunkShift) return dot;
  const int lane = threadIdx.x & 31, warp = warp_index(), warps = 1 << (shift - kChunkShift);
  if (lane == 0) sums[warp] = dot;
  __syncthreads();
  return tree_sum(lane < warps ? sums[(warp & -warps) + lane] : 0.0f);
}

__global__ void __launch_bounds__(kThreads) encode_blocks(Input x, BlockRows row, const float* centroids, int shift,
                                                         Random signs_of, uint32_t* words, float* dots) {
  __shared__ Centroids table;
  __shared__ float span[kSpan];
  __shared__ Signs<kSpanTiles> signs[2];  // in turn, so that one barrier is enough
  __shared__ float sums[kWarps];
  fill(table, centroids);
  const int lane = threadIdx.x & 31, warp = warp_index();
  float* place = span + warp * kChunk;
  const int64_t n = row.blocks << shift;
  int turn = 0;
  for (int64_t start = static_cast<int64_t>(blockIdx.x) * kSpan; start < n;
       start += static_cast<int64_t>(gridDim.x) * kSpan, turn ^= 1) {
    const int64_t chunk = start + warp * kChunk;
    float v[kRows];
    read_chunk(x, chunk, v, place);
    fill(signs[turn], start, kSignTile, signs_of);
    __syncthreads();
    apply_signs(v, signs[turn].word[warp][lane]);
    transform_span<kLeastBlock>(v, span, 1 << shift);
#pragma unroll
    for (int k = 0; k < kRows; ++k) place[32 * k + lane] = v[k];
    for (int k = 0; k < kRows;) {
      const Part part = part_at(chunk + 32 * k, shift);
      float dot = 0.0f;
      if (part.block < row.blocks) {
        const int width = row.widths[part.block];
        const int64_t begin = row.begins[part.block];
        if (!lies_within(width, begin, row.planes))
          dot = kNan;
        else if (width)
          dot = code_rows(place + 32 * k, part.rows, row.numbers[part.block], width, table,
                          words + words_before(part, begin, width, shift));
      }
      dot = dot_of_block(dot, shift, sums);
      if (lane == 0 && part.block < row.blocks && part.first_row == 0) dots[part.block] = dot;
      k += part.rows;
    }
  }
}

// Of a row of payloads: the centroids of a warp's chunk.
__device__ __forceinline__ void read_blocks(const uint32_t* words, const BlockRows& rows, int64_t before, int64_t chunk,
                                            int shift, const Centroids& table, float* place) {
  for (int k = 0; k < kRows;) {
    const Part part = part_at(chunk + 32 * k, shift);
    const bool held = part.block < rows.blocks;
    const int width = held ? rows.widths[before + part.block] : 0;
    const int64_t begin = held ? rows.begins[before + part.block] : 0;
    if (held && !lies_within(width, begin, rows.planes))
      fill_rows(kNan, part.rows, place + 32 * k);
    else if (width)
      read_rows(words + words_before(part, begin, width, shift), part.rows, width, table, place + 32 * k);
    else
      fill_rows(0.0f, part.rows, place + 32 * k);
    k += part.rows;
  }
}

__global__ void __launch_bounds__(kThreads) decode_blocks(const uint32_t* words, int64_t count, int64_t stride,
                                                         BlockRows rows, const float* centroids, int64_t n, int shift,
                                                         const int64_t* seeds, uint64_t offset, float scale,
                                                         float* out) {
  __shared__ Centroids table;
  __shared__ float span[kSpan];
  __shared__ Signs<kSpanTiles> signs[2];  // in turn, so that one barrier is enough
  fill(table, centroids);
  const int lane = threadIdx.x & 31, warp = warp_index();
  float* place = span + warp * kChunk;
  int turn = 0;
  for (int64_t start = static_cast<int64_t>(blockIdx.x) * kSpan; start < n;
       start += static_cast<int64_t>(gridDim.x) * kSpan) {
    const int64_t chunk = start + warp * kChunk;
    float sum[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) sum[k] = 0.0f;
    for (int64_t row = 0; row < count; ++row, turn ^= 1) {
      fill(signs[turn], start, kSignTile, Random{round_keys(static_cast<uint64_t>(seeds[row])), offset});
      __syncthreads();
      read_blocks(words + row * stride, rows, row * rows.blocks, chunk, shift, table, place);
      float v[kRows];
      read_whole(Float32{place}, 0, v);
      transform_span<kLeastBlock>(v, span, 1 << shift);
      const int64_t block = min((chunk + 32 * lane) >> shift, rows.blocks - 1);  // of row `lane` of the chunk
      const float factor = rows.numbers[row * rows.blocks + block];
#pragma unroll
      for (int k = 0; k < kRows; ++k) v[k] *= __shfl_sync(kAll, factor, k);
      apply_signs(v, signs[turn].word[warp][lane]);
#pragma unroll
      for (int k = 0; k < kRows; ++k) sum[k] += v[k];
    }
    const int left = static_cast<int>(min(n - chunk, static_cast<int64_t>(kChunk))) - lane;
#pragma unroll
    for (int k = 0; k < kRows; ++k)
      if (32 * k < left) out[chunk + lane + 32 * k] = sum[k] * scale;
  }
}

}  // namespace

int eden_encode(Input x, BlockRows row, const float* centroids, int64_t block_size, uint64_t seed, uint64_t offset,
                uint32_t* words, float* dots, void* stream) {
  const cudaStream_t on = stream_of(stream);
  const int shift = shift_of(block_size);
  const size_t bytes = static_cast<size_t>(row.planes * (block_size / 8));
  if (bytes)
    if (const cudaError_t error = cudaMemsetAsync(words, 0, bytes, on)) return static_cast<int>(error);
  if (row.blocks == 0) return 0;
  encode_blocks<<<blocks_for(ceil_divide(row.blocks << shift, kSpan)), kThreads, 0, on>>>(
      x, row, centroids, shift, Random{round_keys(seed), offset}, words, dots);
  return launched();
}

int eden_decode_sum(const uint32_t* words, int64_t count, int64_t stride, BlockRows rows, const float* centroids,
                    int64_t n, int64_t block_size, const int64_t* seeds, uint64_t offset, float scale, float* out,
                    void* stream) {
  if (n == 0) return 0;
  decode_blocks<<<blocks_for(ceil_divide(n, kSpan)), kThreads, 0, stream_of(stream)>>>(
      words, count, stride, rows, centroids, n, shift_of(block_size), seeds, offset, scale, out);
  return launched();
}

}  // namespace lqray::cuda
