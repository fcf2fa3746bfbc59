// CUDA kernels' launchers: device pointers, sizes and a stream; no torch. None waits for the device or allocates.
// Each returns cudaGetLastError() of its launches as an int: 0 is success, `error_text` explains the others.
#pragma once

#include <cstdint>

#include "rounding.h"

namespace lqray::cuda {

struct Input {
  const void* data;  // contiguous
  Dtype dtype;
  int64_t n;
};

// levels: `count` floats on the device.
struct DeviceLevels {
  const float* data;
  int count;
  int bits;
};

// How much memory of the device, aligned to 4 bytes, those that take `scratch` need; its content does not
// matter.
int64_t scratch_bytes(int64_t n, int64_t bucket_size);
int64_t scratch_bytes_fused(int64_t n, int64_t bucket_size);
int64_t scratch_bytes_rotated(int64_t n, int64_t bucket_size);

int bucket_norms(Input x, int64_t bucket_size, NormOf norm, void* scratch, float* norms, void* stream);
int bucket_statistics(Input x, int64_t bucket_size, NormOf norm, double* norms, double* means, double* sigmas,
                      void* stream);
int encode(Input x, const float* norms, DeviceLevels levels, int64_t bucket_size, uint64_t seed, uint64_t offset,
           uint32_t* words, void* stream);
int encode_fused(Input x, DeviceLevels levels, int64_t bucket_size, NormOf norm, uint64_t seed, uint64_t offset,
                 void* scratch, float* norms, uint32_t* words, void* stream);
// rows: `count` payloads `stride` bytes apart, norms then words; out = (sum in their order) * scale, added to `add` if
// any, or, of a single one with `plain`, norm * level.
int decode(const uint8_t* rows, int64_t count, int64_t stride, int64_t norm_bytes, DeviceLevels levels, int64_t n,
           int64_t bucket_size, float scale, bool plain, const float* add, float* out, void* stream);
// Of n coordinates, of which x has the first, and the others are zeros.
int hadamard(Input x, int64_t n, int64_t block_size, uint64_t seed, uint64_t offset, bool inverse, float* out,
             void* stream);
// encode_fused of such coordinates after hadamard, keyed by `rotation`; n is whole buckets.
int encode_rotated(Input x, int64_t n, DeviceLevels levels, int64_t bucket_size, NormOf norm, uint64_t seed,
                   uint64_t offset, uint64_t rotation, void* scratch, float* norms, uint32_t* words, void* stream);

const char* error_text(int error);

}  // namespace lqray::cuda
