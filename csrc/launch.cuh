// What launchers share, on the host.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace lqray::cuda {

namespace {

constexpr int64_t kMostBlocks = 1 << 30;

inline int launched() { return static_cast<int>(cudaGetLastError()); }
inline unsigned blocks_for(int64_t work) {
  return static_cast<unsigned>(std::max<int64_t>(1, std::min(work, kMostBlocks)));
}
inline cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

// Of a power of two.
inline int shift_of(int64_t power) {
  int shift = 0;
  while ((int64_t{1} << shift) < power) ++shift;
  return shift;
}

}  // namespace

}  // namespace lqray::cuda
