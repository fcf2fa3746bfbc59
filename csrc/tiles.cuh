// What the CUDA kernels share: readers of a tensor, random numbers with the keys of a seed, division by a bucket's
// size, and the codes of a tile. A tile is 256 coordinates, 32 j + lane (j < 8), of one warp: eight of each lane, for
// which one Philox call has the random numbers. A bit plane of 32 coordinates is one ballot.
#pragma once

#include <cuda_runtime.h>

#include "quantize_cuda.h"

namespace lqray::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPerLane = kTile / 32;
constexpr unsigned kAll = 0xffffffffu;

struct Float32 {
  const float* p;
  __device__ __forceinline__ float operator[](int64_t i) const { return p[i]; }
};
struct Float16 {
  const uint16_t* p;
  __device__ __forceinline__ float operator[](int64_t i) const {
#if defined(__CUDA_ARCH__)
    float value;  // exact, subnormal numbers too; a NaN may have other bits than half_bits gives it
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(p[i]));
    return value;
#else
    return __uint_as_float(half_bits(p[i]));
#endif
  }
};
struct Bfloat16 {
  const uint16_t* p;
  __device__ __forceinline__ float operator[](int64_t i) const {
    return __uint_as_float(static_cast<uint32_t>(p[i]) << 16);
  }
};

// The stream of random numbers of one tensor. The keys are made once, on the host: in a kernel they are constants.
struct Random {
  RoundKeys keys;
  uint64_t offset;
  __device__ __forceinline__ Words operator()(uint64_t call) const { return philox(call, offset, keys); }
};

// Quotients of coordinates and a bucket size without a division (Granlund and Montgomery, PLDI 1994): of n < 2^63 and
// 1 <= divisor < 2^62, n / divisor is the upper half of n * magic, shifted.
struct Divisor {
  int64_t divisor;
  uint64_t magic;
  int shift;
  explicit Divisor(int64_t by) : divisor(by), magic(0), shift(0) {
    if (by == 1) return;
    while ((int64_t{1} << shift) < by) ++shift;  // 2^shift is the smallest power of two that is at least the divisor
    magic = static_cast<uint64_t>((static_cast<unsigned __int128>(1) << (63 + shift)) / by + 1);
    --shift;
  }
  __device__ __forceinline__ int64_t of(int64_t n) const {
    return divisor == 1 ? n : static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(n), magic) >> shift);
  }
};

// The levels' tables, as of rounding.h, in shared memory: of a cell the inner level above it (x alone), and at a fixed
// distance the level below and the gap, so that one address finds all.
template <int kBits>
struct Tables {
  float2 inner[1 << kBits];
  float2 cell[1 << kBits];
  __device__ __forceinline__ float middle() const { return inner[(1 << kBits) / 2 - 1].x; }
};

// All threads of the block; a barrier has to follow.
template <int kBits>
__device__ __forceinline__ void fill(Tables<kBits>& tables, DeviceLevels levels) {
  for (int i = threadIdx.x; i < (1 << kBits); i += blockDim.x) {
    const int cell = min(i, levels.count - 2);
    tables.inner[i].x = i < levels.count - 2 ? levels.data[i + 1] : __uint_as_float(0x7fc00000u);
    tables.cell[i] = make_float2(levels.data[cell], levels.data[cell + 1] - levels.data[cell]);
  }
}

// Of coordinate 32 j + lane, the 24 bits of its random word that count.
__device__ __forceinline__ uint32_t upper_bits(const Words& call, int j) {
  return (j & 1) ? __byte_perm(call.w[j >> 1], 0, 0x4103) : call.w[j >> 1] >> 8;
}

// at + step where a >= b, a predicated addition: compilers make a selection and an addition of it.
__device__ __forceinline__ unsigned plus_where_not_below(unsigned at, float a, float b, unsigned step) {
#if defined(__CUDA_ARCH__)
  asm("{.reg .pred p; setp.ge.f32 p, %1, %2; @p add.u32 %0, %0, %3;}" : "+r"(at) : "f"(a), "f"(b), "r"(step));
  return at;
#else
  return a >= b ? at + step : at;
#endif
}

// at + step where a < b.
__device__ __forceinline__ unsigned plus_where_below(unsigned at, float a, float b, unsigned step) {
#if defined(__CUDA_ARCH__)
  asm("{.reg .pred p; setp.lt.f32 p, %1, %2; @p add.u32 %0, %0, %3;}" : "+r"(at) : "f"(a), "f"(b), "r"(step));
  return at;
#else
  return a < b ? at + step : at;
#endif
}

// The code of r, whose random bits are `upper`, times 8: the offset of its cell in the tables.
template <int kBits>
__device__ __forceinline__ unsigned code_of(float r, uint32_t upper, const Tables<kBits>& tables, float middle) {
  const char* inner = reinterpret_cast<const char*>(&tables);
  unsigned at = 0;
  if (kBits > 1) {
    at = plus_where_not_below(0, r, middle, 4 << kBits);
#pragma unroll
    for (int step = 2 << kBits; step >= 8; step /= 2)
      at = plus_where_not_below(at, r, *reinterpret_cast<const float*>(inner + at + step - 8), step);
  }
  const float2 cell = *reinterpret_cast<const float2*>(inner + at + (8 << kBits));
  const float up = static_cast<float>(static_cast<int32_t>(upper)) * kUnit * cell.y, beyond = r - cell.x;
  return plus_where_below(at, up, beyond, 8);
}

// Which lanes have a bit of `mask`.
template <int kBits>
__device__ __forceinline__ uint32_t ballot_of(unsigned value, unsigned mask) {
  unsigned bit = value & mask;
  if (kBits <= 6) asm("" : "+r"(bit));  // else compilers shift the bit down first; there are seven predicates
  return __ballot_sync(kAll, bit != 0);
}

// The words of a tile, a place for each warp, where lane 0 leaves them four at a time and all lanes fetch them.
template <int kBits>
struct TileWords {
  uint4 four[kPerLane * kBits / 4];
};

// Codes of a lane's eight coordinates r of a tile, and the words of the tile's groups, the first `count` of which are
// stored together.
template <int kBits>
__device__ __forceinline__ void encode_tile(const float (&r)[kPerLane], const Tables<kBits>& tables, float middle,
                                            uint64_t tile, const Random& random, int count, TileWords<kBits>& place,
                                            uint32_t* words) {
  const int lane = threadIdx.x & 31;
  const Words call = random(tile * 32 + lane);
  uint32_t four[4];
  __syncwarp();  // the tile before has been fetched
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const unsigned code = code_of(r[j], upper_bits(call, j), tables, middle);
#pragma unroll
    for (int plane = 0; plane < kBits; ++plane) {
      const int slot = j * kBits + plane;
      four[slot & 3] = ballot_of<kBits>(code, 8u << plane);
      if ((slot & 3) == 3 && lane == 0) place.four[slot / 4] = make_uint4(four[0], four[1], four[2], four[3]);
    }
  }
  __syncwarp();
  const uint32_t* staged = reinterpret_cast<const uint32_t*>(place.four);
#pragma unroll
  for (int slot = lane; slot < kPerLane * kBits; slot += 32)
    if (slot < count) words[slot] = staged[slot];
}

// Of the block; the same in all lanes, which the compiler believes.
__device__ __forceinline__ int warp_index() { return __shfl_sync(kAll, static_cast<int>(threadIdx.x >> 5), 0); }

// A value that is the same in all lanes, which the compiler then believes.
__device__ __forceinline__ float uniform_of(float value) { return __shfl_sync(kAll, value, 0); }

}  // namespace

}  // namespace lqray::cuda
