// CUDA kernels of what stands before the codes of rotated blocks: norms in a byte each, and widths that follow from them.
// A thread draws the dithers of four blocks. Widths want two passes over a row's norm codes, a part of 4,096 of them a
// CUDA block's: how many of each code there are; and, when that has said how wide each code is, where every block begins.
#include "blocks_cuda.h"
#include "launch.cuh"
#include "tiles.cuh"

namespace lqray::cuda {

namespace {

constexpr int kOfCall = 4;            // blocks whose dithers a Philox call has
constexpr int64_t kMostAtOnce = 512;  // CUDA blocks whose warps each bring a largest exponent
constexpr int kPart = 4096;           // norm codes
constexpr int kOfWarp = kPart / kWarps;
constexpr int kStepsOfThread = kMostSteps / kThreads;
constexpr int kBatch = 8;             // loads that do not wait for each other
static_assert(kThreads == kNormCodes && kStepsOfThread * kThreads == kMostSteps, "a thread for each norm code");

__device__ __forceinline__ int64_t index_of_thread() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t threads_of_grid() { return static_cast<int64_t>(gridDim.x) * kThreads; }

// f(block, dither) of the blocks of a call, of which there are `blocks`.
template <typename F>
__device__ __forceinline__ void for_each_of_call(int64_t call, int64_t blocks, const Random& random, F&& f) {
  const Words words = random(static_cast<uint64_t>(call));
#pragma unroll
  for (int i = 0; i < kOfCall; ++i)
    if (call * kOfCall + i < blocks) f(call * kOfCall + i, dither_of(words.w[i]));
}

__global__ void __launch_bounds__(kThreads) largest_eighths(const float* norms, int64_t blocks, NormTables tables,
                                                           Random random, int32_t* largest) {
  int32_t most = kNothing;
  for (int64_t call = index_of_thread(); call * kOfCall < blocks; call += threads_of_grid())
    for_each_of_call(call, blocks, random, [&](int64_t block, int drawn) {
      most = max(most, eighths_of(norms[block], drawn, tables));
    });
#pragma unroll
  for (int width = 16; width > 0; width /= 2) most = max(most, __shfl_xor_sync(kAll, most, width));
  if ((threadIdx.x & 31) == 0) atomicMax(largest, most);
}

// found: what largest_eighths left; no less than kNothing where there are no blocks.
__global__ void __launch_bounds__(kThreads) code_norms(const float* norms, int64_t blocks, NormTables tables,
                                                      Random random, const int32_t* found, int32_t* largest,
                                                      uint8_t* codes, float* meant) {
  const int32_t most = max(*found, kNothing);
  for (int64_t call = index_of_thread(); call * kOfCall < blocks; call += threads_of_grid())
    for_each_of_call(call, blocks, random, [&](int64_t block, int drawn) {
      const int code = norm_code_of(norms[block], eighths_of(norms[block], drawn, tables), most);
      codes[block] = static_cast<uint8_t>(code);
      meant[block] = norm_meant(code, most, drawn, tables.scales);
    });
  if (index_of_thread() == 0) *largest = most > kNothing ? most : 0;
}

// Rows of norm codes; of_row: calls of a row.
__global__ void __launch_bounds__(kThreads) norms_of_codes(const uint8_t* codes, int64_t rows, int64_t blocks,
                                                          Divisor of_row, const int32_t* largest, const float* scales,
                                                          const int64_t* seeds, uint64_t offset, float* norms) {
  for (int64_t i = index_of_thread(); i < rows * of_row.divisor; i += threads_of_grid()) {
    const int64_t row = of_row.of(i), before = row * blocks;
    const Random random{round_keys(static_cast<uint64_t>(seeds[row]) ^ kDitherSeed), offset};
    for_each_of_call(i - row * of_row.divisor, blocks, random, [&](int64_t block, int drawn) {
      norms[before + block] = norm_meant(codes[before + block], largest[row], drawn, scales);
    });
  }
}

// How wide a row's codes are: the width of each norm code, and the one of which the first `extra` blocks have one more
// bit (-1: none).
struct Plan {
  int64_t extra;
  int partly;
  int widths[kNormCodes];
};

// Rows of norm codes in parts of kPart, of which a row has of_row.
struct Parts {
  const uint8_t* codes;
  int64_t rows;
  int64_t blocks;  // of a row
  Divisor of_row;
};

// The codes [first, first + size) of all rows that are a part; the last one of a row may have fewer.
struct Span {
  int64_t row;
  int64_t first;
  int size;
};

__device__ __forceinline__ Span span_of(const Parts& parts, int64_t part) {
  const int64_t row = parts.of_row.of(part), within = (part - row * parts.of_row.divisor) * kPart;
  return Span{row, row * parts.blocks + within,
              static_cast<int>(min(parts.blocks - within, static_cast<int64_t>(kPart)))};
}

// How many of each norm code a part has.
__global__ void __launch_bounds__(kThreads) count_codes(Parts parts, int64_t* counts) {
  __shared__ int found[kNormCodes];
  const int own = threadIdx.x;
  for (int64_t part = blockIdx.x; part < parts.rows * parts.of_row.divisor; part += gridDim.x) {
    const Span span = span_of(parts, part);
    found[own] = 0;
    __syncthreads();
    for (int i = own; i < span.size; i += kThreads) atomicAdd(&found[parts.codes[span.first + i]], 1);
    __syncthreads();
    counts[part * kNormCodes + own] = found[own];
  }
}

// Counts of a code in the parts of a row, `of_row` of them, become those in the parts before; returns the row's.
__device__ __forceinline__ int64_t sum_before(int64_t* counts, int64_t of_row) {
  int64_t before = 0;
  for (int64_t first = 0; first < of_row; first += kBatch) {
    int64_t here[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) here[i] = first + i < of_row ? counts[(first + i) * kNormCodes] : 0;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i < of_row) counts[(first + i) * kNormCodes] = before;
      before += here[i];
    }
  }
  return before;
}

// The sum of the values of the lanes up to this one.
template <typename T>
__device__ __forceinline__ T sum_up_to(T value) {
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const T below = __shfl_up_sync(kAll, value, by);
    if ((threadIdx.x & 31) >= by) value += below;
  }
  return value;
}

// The sum of the values of the block's threads before this one; sums: of the warps.
__device__ __forceinline__ int64_t sum_before_thread(int64_t value, int64_t* sums) {
  const int64_t up_to = sum_up_to(value);
  if ((threadIdx.x & 31) == 31) sums[threadIdx.x >> 5] = up_to;
  __syncthreads();
  int64_t before = up_to - value;
  for (int warp = 0; warp < static_cast<int>(threadIdx.x >> 5); ++warp) before += sums[warp];
  return before;
}

// A CUDA block for each row, a thread for each norm code and for some steps of the order. What is no norm code in it,
// which the host does not see, is taken for the one of its lowest bits.
__global__ void __launch_bounds__(kThreads) plan_widths(Parts parts, const int64_t* order, int64_t steps, int64_t planes,
                                                       int64_t* counts, Plan* plans) {
  __shared__ int64_t counted[kNormCodes];
  __shared__ int64_t sums[kWarps];
  __shared__ int widths[kNormCodes];
  __shared__ int64_t extra;
  __shared__ int partly;
  const int own = threadIdx.x;
  for (int64_t row = blockIdx.x; row < parts.rows; row += gridDim.x) {
    counted[own] = sum_before(counts + row * parts.of_row.divisor * kNormCodes + own, parts.of_row.divisor);
    widths[own] = own > 0;
    if (own == 0) extra = 0, partly = -1;
    __syncthreads();
    const int64_t budget = planes - (parts.blocks - counted[0]);
    int code[kStepsOfThread];
    int64_t wanted = 0;
#pragma unroll
    for (int i = 0; i < kStepsOfThread; ++i) {
      const int step = own * kStepsOfThread + i;
      code[i] = step < steps ? static_cast<int>(order[step] & (kNormCodes - 1)) : -1;
      wanted += code[i] < 0 ? 0 : counted[code[i]];
    }
    wanted = sum_before_thread(wanted, sums);
#pragma unroll
    for (int i = 0; i < kStepsOfThread; ++i) {
      if (code[i] < 0 || wanted > budget) break;
      wanted += counted[code[i]];
      if (wanted <= budget)
        atomicAdd(&widths[code[i]], 1);
      else
        partly = code[i], extra = budget - (wanted - counted[code[i]]);
    }
    __syncthreads();
    plans[row].widths[own] = widths[own];
    if (own == 0) plans[row].extra = extra, plans[row].partly = partly;
  }
}

// What comes before a code: planes of the plan's widths, and codes of which only some have one bit more.
struct Before {
  int64_t planes;
  int64_t partly;
};

// Of the codes that a warp has, the first `size`: their sum, in all lanes.
__device__ __forceinline__ Before sum_of_warp(const uint8_t* codes, int size, const int* widths, int partly) {
  int planes = 0, some = 0;
  for (int i = threadIdx.x & 31; i < size; i += 32) {
    planes += widths[codes[i]];
    some += codes[i] == partly;
  }
#pragma unroll
  for (int width = 16; width > 0; width /= 2) {
    planes += __shfl_xor_sync(kAll, planes, width);
    some += __shfl_xor_sync(kAll, some, width);
  }
  return Before{planes, some};
}

// Widths and first planes of the codes that a warp has, `before` being what comes before them in their row.
__device__ __forceinline__ void place_codes(const uint8_t* codes, int size, const int* widths, int partly, int64_t extra,
                                            Before before, uint8_t* wide, int64_t* begins) {
  const int lane = threadIdx.x & 31;
  for (int row = 0; row < size; row += 32) {
    const bool held = row + lane < size;
    const int code = held ? codes[row + lane] : -1, width = held ? widths[code] : 0;
    const unsigned some = __ballot_sync(kAll, held && code == partly);
    const int64_t rank = before.partly + __popc(some & ((1u << lane) - 1));
    const int up_to = sum_up_to(width);
    if (held) {
      wide[row + lane] = static_cast<uint8_t>(width + (code == partly && rank < extra));
      begins[row + lane] = before.planes + up_to - width + min(rank, extra);
    }
    before.planes += __shfl_sync(kAll, up_to, 31);
    before.partly += __popc(some);
  }
}

__global__ void __launch_bounds__(kThreads) place_blocks(Parts parts, const int64_t* counts, const Plan* plans,
                                                        uint8_t* wide, int64_t* begins) {
  __shared__ int widths[kNormCodes];
  __shared__ int64_t planes_before[kWarps];  // of the row's parts before, summed by the warps
  __shared__ int64_t partly_before;
  __shared__ Before of_warp[kWarps];
  const int own = threadIdx.x, warp = warp_index(), from = warp * kOfWarp;
  for (int64_t part = blockIdx.x; part < parts.rows * parts.of_row.divisor; part += gridDim.x) {
    const Span span = span_of(parts, part);
    const Plan& plan = plans[span.row];
    const int partly = plan.partly;
    const int64_t counted = counts[part * kNormCodes + own];
    int64_t planes = counted * plan.widths[own];
#pragma unroll
    for (int width = 16; width > 0; width /= 2) planes += __shfl_xor_sync(kAll, planes, width);
    __syncthreads();  // the part before has been placed
    widths[own] = plan.widths[own];
    if (own == partly) partly_before = counted;
    if ((own & 31) == 0) planes_before[warp] = planes;
    __syncthreads();
    const int size = min(span.size - from, kOfWarp);
    const Before sum = sum_of_warp(parts.codes + span.first + from, size, widths, partly);
    if ((own & 31) == 0) of_warp[warp] = sum;
    __syncthreads();
    Before before{0, partly < 0 ? 0 : partly_before};
    for (int i = 0; i < kWarps; ++i) {
      before.planes += planes_before[i];
      if (i < warp) before.planes += of_warp[i].planes, before.partly += of_warp[i].partly;
    }
    place_codes(parts.codes + span.first + from, size, widths, partly, plan.extra, before, wide + span.first + from,
                begins + span.first + from);
  }
}

Random dithers_of(uint64_t seed, uint64_t offset) { return Random{round_keys(seed ^ kDitherSeed), offset}; }
int64_t parts_of(int64_t blocks) { return std::max<int64_t>(1, ceil_divide(blocks, kPart)); }

}  // namespace

int block_norm_codes(const float* norms, int64_t blocks, NormTables tables, uint64_t seed, uint64_t offset,
                     int32_t* scratch, int32_t* largest, uint8_t* codes, float* meant, void* stream) {
  const cudaStream_t on = stream_of(stream);
  const Random random = dithers_of(seed, offset);
  const int64_t threads = ceil_divide(ceil_divide(blocks, kOfCall), kThreads);
  // Less than kNothing, whichever bytes these are.
  if (const cudaError_t error = cudaMemsetAsync(scratch, 0x80, sizeof *scratch, on)) return static_cast<int>(error);
  largest_eighths<<<blocks_for(std::min(threads, kMostAtOnce)), kThreads, 0, on>>>(norms, blocks, tables, random,
                                                                                  scratch);
  if (const int error = launched()) return error;
  code_norms<<<blocks_for(threads), kThreads, 0, on>>>(norms, blocks, tables, random, scratch, largest, codes, meant);
  return launched();
}

int block_norms(const uint8_t* codes, int64_t rows, int64_t blocks, const int32_t* largest, const float* scales,
                const int64_t* seeds, uint64_t offset, float* norms, void* stream) {
  if (rows == 0 || blocks == 0) return 0;
  const Divisor of_row(ceil_divide(blocks, kOfCall));
  norms_of_codes<<<blocks_for(ceil_divide(rows * of_row.divisor, kThreads)), kThreads, 0, stream_of(stream)>>>(
      codes, rows, blocks, of_row, largest, scales, seeds, offset, norms);
  return launched();
}

int64_t scratch_bytes_widths(int64_t rows, int64_t blocks) {
  return rows * (static_cast<int64_t>(sizeof(Plan)) + parts_of(blocks) * kNormCodes * static_cast<int64_t>(sizeof(int64_t)));
}

int block_widths(const uint8_t* codes, int64_t rows, int64_t blocks, const int64_t* order, int64_t count,
                 int64_t planes, void* scratch, uint8_t* widths, int64_t* begins, void* stream) {
  if (rows == 0 || blocks == 0) return 0;
  const cudaStream_t on = stream_of(stream);
  const Parts parts{codes, rows, blocks, Divisor(parts_of(blocks))};
  Plan* plans = static_cast<Plan*>(scratch);
  int64_t* counts = reinterpret_cast<int64_t*>(plans + rows);
  const unsigned grid = blocks_for(rows * parts.of_row.divisor);
  count_codes<<<grid, kThreads, 0, on>>>(parts, counts);
  if (const int error = launched()) return error;
  plan_widths<<<blocks_for(rows), kThreads, 0, on>>>(parts, order, count, planes, counts, plans);
  if (const int error = launched()) return error;
  place_blocks<<<grid, kThreads, 0, on>>>(parts, counts, plans, widths, begins);
  return launched();
}

}  // namespace lqray::cuda
