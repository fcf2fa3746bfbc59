// CPU kernels: pointers and sizes; no torch, no threads. Each works on a range, so that a caller can share out the whole.
#pragma once

#include <cstdint>

#include "rounding.h"

namespace lqray::cpu {

struct Input {
  const void* data;  // contiguous
  Dtype dtype;
  int64_t n;
};

// Bytes of payloads need no alignment.
struct Codes {
  const uint8_t* norms;  // float32, one per bucket
  const uint8_t* words;  // `bits` uint32 per group of 32 coordinates
};

Levels make_levels(const float* levels, int count, int bits);

// Buckets [begin, end). NaN for a bucket with a NaN or infinity, or a norm beyond float32.
void bucket_norms(Input x, int64_t bucket_size, NormOf norm, uint8_t* norms, int64_t begin, int64_t end);

// Buckets [begin, end): norm, mean and deviation (ddof = 1) of the coordinates divided by the norm.
void bucket_statistics(Input x, int64_t bucket_size, NormOf norm, double* norms, double* means, double* sigmas,
                       int64_t begin, int64_t end);

// Tiles of 256 coordinates [begin, end).
void encode(Input x, const uint8_t* norms, const Levels& levels, int64_t bucket_size, uint64_t seed, uint64_t offset,
            uint8_t* words, int64_t begin, int64_t end);

// Groups of 32 coordinates [begin, end): norm * level; (sum over payloads in their order) * scale, added to `add` if any.
void decode(Codes payload, const Levels& levels, int64_t n, int64_t bucket_size, float* out, int64_t begin, int64_t end);
void decode_sum(const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes, const Levels& levels,
                int64_t n, int64_t bucket_size, float scale, const float* add, float* out, int64_t begin, int64_t end);

// Tiles of signs [begin, end): out, n long, is x, and zeros beyond its end, times their random signs.
void apply_signs(Input x, int64_t n, uint64_t seed, uint64_t offset, float* out, int64_t begin, int64_t end);

// Blocks [begin, end), in place: the orthonormal Walsh-Hadamard transform of each.
void hadamard_blocks(float* x, int64_t block_size, int64_t begin, int64_t end);

// The lowest bits of n codes as bit planes, the tail padded with code 0; n codes of bit planes.
void pack(const uint8_t* codes, int64_t n, int bits, uint8_t* words);
void unpack(const uint8_t* words, int64_t n, int bits, uint8_t* codes);

// "avx512", "avx2" or "portable": what this machine runs, or what LQRAY_CPU_ISA asks for and it has.
const char* instruction_set();

}  // namespace lqray::cpu
