// Levels with slopes, and rounding with noise that workers share: what every backend computes for a coordinate, to the
// bit, and the CPU's kernels. docs/wire-format.md pins the arithmetic.
#pragma once

#include <cstdint>

#include "quantize_cpu.h"

namespace lqray {

constexpr int kMaxWorkers = 1 << 16;

// levels: as of the other methods. curve: of a cell, half of what its lower slope is above the upper one. tilt: slope of
// a code times 2^-24, of codes beyond the last level that of the last.
struct Slopes {
  Levels levels;
  float curve[kMaxLevels];
  float tilt[kMaxLevels];
};

// Where the word of a coordinate comes from. workers = 0: the stream of (seed, offset), plus the phase. Else stratum
// (k + worker) mod workers, k from the stream of `shared`, and within it a place of the stream of `seed`.
struct Noise {
  uint64_t seed;
  uint64_t offset;
  uint32_t phase;
  uint64_t shared;
  uint32_t worker;
  uint32_t workers;
};

LQRAY_HD uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

// The width of a stratum: floor(2^32 / workers), workers >= 2.
LQRAY_HD uint32_t stratum_width(uint32_t workers) {
  return static_cast<uint32_t>((uint64_t{1} << 32) / workers);
}

LQRAY_HD uint32_t stratified(uint32_t shared, uint32_t own, const Noise& noise, uint32_t width) {
  uint32_t stratum = multiply_high(shared, noise.workers) + noise.worker;
  if (stratum >= noise.workers) stratum -= noise.workers;
  return stratum * width + multiply_high(own, width);
}

// Whether a coordinate `rest` above its lower level goes up.
LQRAY_HD bool goes_up(uint32_t word, float gap, float curve, float rest) {
  const float u = uniform(word);
  const float slack = curve * (1.0f - u);
  return u * (gap + slack) < rest;
}

// level + slope (u - 1/2).
LQRAY_HD float sloped(uint32_t word, float level, float tilt) {
  return level + tilt * static_cast<float>(static_cast<int32_t>(word >> 8) - (1 << 23));
}

}  // namespace lqray

namespace lqray::cpu {

Slopes make_slopes(const float* levels, const float* slopes, int count, int bits);

// Tiles of 256 coordinates [begin, end).
void encode_sloped(Input x, const uint8_t* norms, const Slopes& slopes, int64_t bucket_size, const Noise& noise,
                   uint8_t* words, int64_t begin, int64_t end);

// Payloads of one length: norms, then codes; row r has phases[r].
struct SlopedRows {
  const uint8_t* payloads;
  const int32_t* phases;
  int64_t count;
  int64_t stride;
  int64_t norm_bytes;
};

// Tiles of 256 coordinates [begin, end): (sum over rows in their order) * scale.
void decode_sloped(const SlopedRows& rows, const Slopes& slopes, int64_t n, int64_t bucket_size, uint64_t seed,
                   uint64_t offset, float scale, float* out, int64_t begin, int64_t end);

}  // namespace lqray::cpu
