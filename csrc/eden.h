// CPU kernels of rotated blocks whose codes have widths of their own; docs/wire-format.md, "Rotated blocks". No torch, no
// threads: each works on a range of tiles of tile_of(block_size) coordinates.
#pragma once

#include "blocks.h"
#include "quantize_cpu.h"

namespace lqray::cpu {

// Centroids, and the edges between them at the same places: (c_i + c_{i+1}) / 2, then NaN.
struct Centroids {
  float value[kCentroids];
  float edge[kCentroids];
};

// One row: of every block its factor or scale, its width, and the plane, of block_size / 8 bytes, where its codes begin.
struct BlockRow {
  const float* numbers;
  const uint8_t* widths;
  const int64_t* begins;
};

Centroids make_centroids(const float* values);

// Whole blocks, and whole tiles of signs.
inline int64_t tile_of(int64_t block_size) { return block_size > kSignTile ? block_size : kSignTile; }

void eden_encode(Input x, BlockRow row, const Centroids& centroids, int64_t block_size, uint64_t seed, uint64_t offset,
                 uint8_t* codes, float* dots, int64_t begin, int64_t end);

// Sum over the rows, in their order, times scale.
void eden_decode_sum(const uint8_t* codes, int64_t count, int64_t stride, BlockRow rows, int64_t blocks,
                     const Centroids& centroids, int64_t n, int64_t block_size, const int64_t* seeds, uint64_t offset,
                     float scale, float* out, int64_t begin, int64_t end);

// Blocks [begin, end), whole groups of four but for the last: exponents in eighths of a doubling, kNothing for zero and
// NaN; which of the dithers each block has.
void norm_eighths(const float* norms, int64_t blocks, NormTables tables, uint64_t seed, uint64_t offset, int32_t* eighths,
                  uint8_t* drawn, int64_t begin, int64_t end);
void draw_dithers(int64_t blocks, uint64_t seed, uint64_t offset, uint8_t* drawn, int64_t begin, int64_t end);

// Widths of a row of norm codes, and where their planes begin. order: count norm codes.
void block_widths(const uint8_t* codes, int64_t blocks, const int64_t* order, int64_t count, int64_t planes,
                  uint8_t* widths, int64_t* begins);

}  // namespace lqray::cpu
