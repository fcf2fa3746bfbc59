// CPU kernels of blocks whose codes are places on a grid, with widths of their own; docs/wire-format.md, "Blocks on grids".
// No torch, no threads: each works on a range of tiles of 256 coordinates.
#pragma once

#include "eden.h"
#include "slopes.h"

namespace lqray::cpu {

// Levels with slopes of every width, those of width b from 2^b - 2 on; else as of Slopes.
struct GridLevels {
  float inner[kCentroids];  // as of Levels
  float below[kCentroids];
  float gap[kCentroids];
  float curve[kCentroids];
  float value[kCentroids];
  float tilt[kCentroids];
};

GridLevels make_grid_levels(const float* levels, const float* slopes);

// row.numbers: what coordinates of a block are divided by. levels: null for uniform ones. Codes of blocks, each in its
// planes, which must be zero.
void grid_encode(Input x, BlockRow row, const GridLevels* levels, int64_t block_size, const Noise& noise, uint8_t* codes,
                 int64_t begin, int64_t end);

// What rows of codes have in common. rows.numbers: what coordinates were divided by. phases: one for each row, or null
// where the decoder does not know the noise. levels: null for uniform ones.
struct GridRows {
  const uint8_t* codes;
  int64_t count;
  int64_t stride;
  BlockRow rows;
  int64_t blocks;
  const int32_t* phases;
  const GridLevels* levels;
  uint64_t seed;
  uint64_t offset;
};

// Sum over the rows, in their order, times scale.
void grid_decode_sum(const GridRows& from, int64_t n, int64_t block_size, float scale, float* out, int64_t begin,
                     int64_t end);

// The least e with scales[e mod 8] * 2^floor(e / 8) at least a norm, kNothing for zero and NaN: blocks [begin, end).
void ceiling_eighths(const float* norms, const float* scales, int32_t* eighths, int64_t begin, int64_t end);
// What every code stands for, beside the largest norm's exponent.
void ceilings(int32_t largest, const float* scales, float (&meant)[kNormCodes]);

}  // namespace lqray::cpu
