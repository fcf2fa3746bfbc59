// What every backend computes, to the bit: random numbers, norm and scale of a bucket, the levels' tables.
// No torch, no CUDA runtime: included by CPU and GPU kernels alike. docs/wire-format.md pins the arithmetic; compile
// without contraction of a * b + c (-ffp-contract=off, -fmad=false) and without fast-math.
#pragma once

#include <math.h>

#include <cstdint>

#if defined(__CUDACC__)
#define LQRAY_HD __host__ __device__ __forceinline__
#else
#define LQRAY_HD inline __attribute__((always_inline))
#endif

namespace lqray {

constexpr int kTile = 256;      // coordinates that share 32 Philox calls
constexpr int kSignTile = 4096;  // coordinates whose signs share 32 Philox calls: one bit each
constexpr int kGroup = 32;      // coordinates of one word of a bit plane
constexpr int kMaxLevels = 256;
// Bounds of what a caller may ask for: within them no size or index overflows 64 bits.
constexpr int64_t kMaxCoordinates = int64_t{1} << 48;
constexpr int64_t kMaxBucket = int64_t{1} << 30;
constexpr float kTiny = 0x1p-64f;
constexpr float kLift = 0x1p100f;
constexpr float kUnit = 0x1p-24f;
// Sums of squares: 32 lanes, value i in lane i mod 32, over chunks of 1024; then halvings, lane l + lane (l + width).
constexpr int kSumLanes = 32;
constexpr int kSumChunk = 1024;
constexpr float kLeastSquares = 0x1p-60f;
constexpr float kMostSquares = 0x1p120f;

enum class Dtype : int { f32, f16, bf16 };
enum class Norm : int { l2, linf };

// The norm of buckets, and what that of a short last one is multiplied by.
struct NormOf {
  Norm kind;
  float of_short;
};

// a >= 0, b >= 1; never overflows.
LQRAY_HD int64_t ceil_divide(int64_t a, int64_t b) { return a / b + (a % b != 0); }

struct Words {
  uint32_t w[4];
};

// The keys of Philox' ten rounds.
struct RoundKeys {
  uint32_t k0[10], k1[10];
};

LQRAY_HD RoundKeys round_keys(uint64_t key) {
  RoundKeys keys;
  for (int round = 0; round < 10; ++round) {
    keys.k0[round] = static_cast<uint32_t>(key) + static_cast<uint32_t>(round) * 0x9E3779B9u;
    keys.k1[round] = static_cast<uint32_t>(key >> 32) + static_cast<uint32_t>(round) * 0xBB67AE85u;
  }
  return keys;
}

// Philox4x32-10 (Salmon et al., SC 2011): counter (low: 64 bits, high: 64 bits), key 64 bits.
LQRAY_HD Words philox(uint64_t low, uint64_t high, const RoundKeys& keys) {
  uint32_t c0 = static_cast<uint32_t>(low), c1 = static_cast<uint32_t>(low >> 32);
  uint32_t c2 = static_cast<uint32_t>(high), c3 = static_cast<uint32_t>(high >> 32);
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ keys.k0[round];
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ keys.k1[round];
    c3 = static_cast<uint32_t>(p0);
  }
  return Words{{c0, c1, c2, c3}};
}

// Of a tile's call for a lane, the word of coordinate 32 j + lane: j = 2m takes word m, j = 2m + 1 takes it rotated.
LQRAY_HD uint32_t word_of(const Words& words, int j) {
  const uint32_t w = words.w[j >> 1];
  return (j & 1) ? (w << 16) | (w >> 16) : w;
}

// In [0, 1), a multiple of 2^-24.
LQRAY_HD float uniform(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word >> 8)) * kUnit; }

LQRAY_HD uint32_t as_bits(float value) {
  union {
    float f;
    uint32_t u;
  } same;
  same.f = value;
  return same.u;
}

LQRAY_HD float as_float(uint32_t bits) {
  union {
    uint32_t u;
    float f;
  } same;
  same.u = bits;
  return same.f;
}

LQRAY_HD float finite_or_nan(float norm) {
  return (as_bits(norm) & 0x7f800000u) == 0x7f800000u ? as_float(0x7fc00000u) : norm;
}

// Whether the l2 norm is the root of the plain sum of squares: it is so large that none that mattered underflowed, and
// nothing overflowed. False for NaN.
LQRAY_HD bool squares_suffice(float squares) { return squares >= kLeastSquares && squares <= kMostSquares; }

// Otherwise the squares of x * down are summed, and the norm is their root times up: two exact powers of two, of which
// down brings the largest magnitude into [1, 4), where it is not subnormal.
struct Rescaling {
  float down;
  float up;
};

// largest: magnitude; NaN and infinity give a NaN norm, 0 gives 0.
LQRAY_HD Rescaling rescaling_of(float largest) {
  const uint32_t field = as_bits(largest) >> 23;  // of the exponent, biased by 127
  const uint32_t up = field < 1u ? 1u : field > 253u ? 253u : field;
  return Rescaling{as_float((254u - up) << 23), as_float(up << 23)};
}

// The l2 norm of a sum of squares, up = 1 where squares_suffice.
LQRAY_HD float root_of(float squares, float up) { return finite_or_nan(sqrtf(squares) * up); }

// r = (x * lift) * inverse. Tiny norms are lifted by an exact power of two, so that the inverse is finite.
struct Scale {
  float lift;
  float inverse;
};

LQRAY_HD Scale scale_of(float norm) {
  if (norm == 0.0f) return Scale{1.0f, 0.0f};
  const bool tiny = norm < kTiny;
  return Scale{tiny ? kLift : 1.0f, 1.0f / (tiny ? norm * kLift : norm)};
}

// Levels as the kernels read them: count of them, and beyond the last one entries that no coordinate ever reaches.
// inner[i] = levels[i + 1] for the inner levels, then NaN; below, gap: of cell j, [levels[j], levels[j + 1]];
// value[c]: level of code c, for c beyond the last level the last, so that no code reads out of bounds.
struct Levels {
  int count;
  int bits;
  float inner[kMaxLevels];
  float below[kMaxLevels];
  float gap[kMaxLevels];
  float value[kMaxLevels];
};

// The cell of r: how many inner levels are at most r. NaN is in cell 0.
template <typename Table>
LQRAY_HD int cell_of(const Table* inner, int bits, float r) {
  int cell = 0;
  for (int step = 1 << (bits - 1); step > 0; step >>= 1) cell += (r >= inner[cell + step - 1]) ? step : 0;
  return cell;
}

// A butterfly of the Walsh-Hadamard transform.
LQRAY_HD void butterfly(float& upper, float& lower) {
  const float sum = upper + lower;
  lower = upper - lower;
  upper = sum;
}

// float32 of the 16 bits of a half-precision number; exact, subnormals, infinities and NaN included.
LQRAY_HD uint32_t half_bits(uint16_t h) {
  union {
    uint32_t u;
    float f;
  } scaled;
  scaled.u = static_cast<uint32_t>(h & 0x7fffu) << 13;
  scaled.f *= 0x1p112f;
  const uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return scaled.u | special | (static_cast<uint32_t>(h & 0x8000u) << 16);
}

}  // namespace lqray
