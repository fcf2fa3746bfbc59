// CPU kernels of rotated blocks whose codes have widths of their own; docs/wire-format.md, "Rotated blocks". No torch, no
// threads: each works on a range of tiles of tile_of(block_size) coordinates.
#pragma once

#include "quantize_cpu.h"

namespace lqray::cpu {

constexpr int kLeastBlock = 32;
constexpr int kMostBlock = 8192;
constexpr int kMostWidth = 8;
constexpr int kCentroids = (2 << kMostWidth) - 2;  // those of width b from 2^b - 2 on

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

// Norms of blocks in a byte each; lqray/ops/allocation.py.
constexpr int kNormSteps = 8;  // codes of a doubling
constexpr int kDithers = 32;
constexpr int kMostNorm = 254;
constexpr int kNotANumber = 255;
constexpr int32_t kNothing = -(1 << 20);

struct NormTables {
  const int32_t* edges;  // kNormSteps - 1 mantissas
  const float* dithers;  // kDithers
  const float* scales;   // kDithers rows of kNormSteps
};

// Blocks [begin, end), whole groups of four but for the last: exponents in eighths of a doubling, kNothing for zero and
// NaN; which of the dithers each block has.
void norm_eighths(const float* norms, int64_t blocks, NormTables tables, uint64_t seed, uint64_t offset, int32_t* eighths,
                  uint8_t* drawn, int64_t begin, int64_t end);
void draw_dithers(int64_t blocks, uint64_t seed, uint64_t offset, uint8_t* drawn, int64_t begin, int64_t end);
float norm_meant(int code, int32_t largest, int drawn, const float* scales);

// Widths of a row of norm codes, and where their planes begin. order: count norm codes.
void block_widths(const uint8_t* codes, int64_t blocks, const int64_t* order, int64_t count, int64_t planes,
                  uint8_t* widths, int64_t* begins);

}  // namespace lqray::cpu
