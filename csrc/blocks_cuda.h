// Launchers of the CUDA kernels of rotated blocks, as those of quantize_cuda.h. Pointers are to the device's memory,
// those to words aligned to 4 bytes.
#pragma once

#include "blocks.h"
#include "quantize_cuda.h"

namespace lqray::cuda {

// Of every block, row after row: its factor or scale, its width, and the plane, of block_size / 32 words, where its codes
// begin. A block whose codes lie outside of the planes has NaN for a result, and no codes.
struct BlockRows {
  const float* numbers;
  const uint8_t* widths;
  const int64_t* begins;
  int64_t blocks;  // of a row
  int64_t planes;  // of a row of codes
};

int eden_encode(Input x, BlockRows row, const float* centroids, int64_t block_size, uint64_t seed, uint64_t offset,
                uint32_t* words, float* dots, void* stream);
// words: `count` rows, `stride` words apart. seeds: of the rows' signs.
int eden_decode_sum(const uint32_t* words, int64_t count, int64_t stride, BlockRows rows, const float* centroids,
                    int64_t n, int64_t block_size, const int64_t* seeds, uint64_t offset, float scale, float* out,
                    void* stream);

// scratch: 4 bytes. largest: of the norms, one number.
int block_norm_codes(const float* norms, int64_t blocks, NormTables tables, uint64_t seed, uint64_t offset,
                     int32_t* scratch, int32_t* largest, uint8_t* codes, float* meant, void* stream);
int block_norms(const uint8_t* codes, int64_t rows, int64_t blocks, const int32_t* largest, const float* scales,
                const int64_t* seeds, uint64_t offset, float* norms, void* stream);

// order: `count` norm codes, at most kMostSteps. scratch: of scratch_bytes_widths, aligned to 8 bytes.
int64_t scratch_bytes_widths(int64_t rows, int64_t blocks);
int block_widths(const uint8_t* codes, int64_t rows, int64_t blocks, const int64_t* order, int64_t count,
                 int64_t planes, void* scratch, uint8_t* widths, int64_t* begins, void* stream);

}  // namespace lqray::cuda
