// Rotated blocks whose codes have widths of their own, and their norms in a byte: sizes, and what every backend computes
// for a block's norm, to the bit; `__host__ __device__`. docs/wire-format.md, "Rotated blocks"; lqray/ops/allocation.py.
#pragma once

#include "rounding.h"

namespace lqray {

constexpr int kLeastBlock = 32;
constexpr int kMostBlock = 8192;
constexpr int kMostWidth = 8;
constexpr int kCentroids = (2 << kMostWidth) - 2;  // those of width b from 2^b - 2 on

constexpr int kNormCodes = 256;
constexpr int kNormSteps = 8;  // codes of a doubling
constexpr int kDithers = 32;
constexpr int kMostNorm = 254;
constexpr int kNotANumber = 255;
constexpr int32_t kNothing = -(1 << 20);
constexpr uint64_t kDitherSeed = 0x6469746865;
constexpr int64_t kMostSteps = kNormCodes * (kMostWidth - 1);  // of the order in which bits are given away

struct NormTables {
  const int32_t* edges;  // kNormSteps - 1 mantissas
  const float* dithers;  // kDithers
  const float* scales;   // kDithers rows of kNormSteps
};

// Of a Philox call's word: which of the dithers.
LQRAY_HD int dither_of(uint32_t word) { return static_cast<int>(word >> 27); }

// The exponent of a norm in eighths of a doubling, rounded down after the dither; kNothing for zero and NaN.
LQRAY_HD int32_t eighths_of(float norm, int drawn, const NormTables& tables) {
  if (!(norm > 0.0f)) return kNothing;
  const uint32_t bits = as_bits(norm * tables.dithers[drawn]);
  const int32_t mantissa = static_cast<int32_t>(bits & 0x7fffffu);
  int32_t step = 0;
  for (int edge = 0; edge < kNormSteps - 1; ++edge) step += tables.edges[edge] <= mantissa;
  return kNormSteps * (static_cast<int32_t>(bits >> 23) - 127) + step;
}

// The code of a norm whose exponent is `eighths`, `largest` being that of the largest.
LQRAY_HD int norm_code_of(float norm, int32_t eighths, int32_t largest) {
  if (eighths <= kNothing) return norm != norm ? kNotANumber : 0;
  const int32_t code = kMostNorm + eighths - largest;
  return code < 1 ? 1 : code;
}

LQRAY_HD float power_of_two(int exponent) {
  const int within = exponent < -126 ? -126 : exponent > 127 ? 127 : exponent;
  return as_float(static_cast<uint32_t>(within + 127) << 23);
}

LQRAY_HD int floor_divide(int a, int b) { return a / b - (a % b < 0); }

// What a norm code stands for: of kNormSteps `steps` one, times a power of two. An exponent that no encoder sends would
// overflow; it is as good as any other.
LQRAY_HD float norm_meant(int code, int32_t largest, const float* steps) {
  if (code == 0) return 0.0f;
  if (code == kNotANumber) return as_float(0x7fc00000u);
  const int32_t within = largest < -(1 << 16) ? -(1 << 16) : largest > (1 << 16) ? 1 << 16 : largest;
  const int eighths = code - kMostNorm + within, power = floor_divide(eighths, kNormSteps);
  const int half = floor_divide(power, 2);  // two factors: a subnormal norm is beyond one power of float32
  return steps[eighths - kNormSteps * power] * power_of_two(half) * power_of_two(power - half);
}

LQRAY_HD float norm_meant(int code, int32_t largest, int drawn, const float* scales) {
  return norm_meant(code, largest, scales + drawn * kNormSteps);
}

// Whether a block's codes lie within the planes that there are. What a kernel cannot refuse, it must not touch.
LQRAY_HD bool lies_within(int width, int64_t begin, int64_t planes) {
  return width <= kMostWidth && begin >= 0 && begin <= planes - width;
}

}  // namespace lqray
