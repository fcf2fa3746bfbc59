// What kernels include: CUDA's names, for C++ on the emulated machine. What is not here does not compile, and is added
// where a kernel wants it.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <tuple>
#include <type_traits>

#include "machine.h"

#define __CUDACC__ 1  // for headers that tell CUDA by it
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 : emulated::Index {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : Index{x, y, z} {}
};

namespace emulated {

template <typename T>
Index index_of(T size) {
  if constexpr (std::is_arithmetic_v<T>)
    return {static_cast<unsigned>(size), 1, 1};
  else
    return size;
}

template <typename Grid, typename Block>
Config configured(Grid grid, Block block, size_t shared = 0, const void* stream = nullptr) {
  return Config(index_of(grid), index_of(block), shared, stream);
}

// kernel<<<config>>>(arguments...): copies of the arguments, for every thread.
template <typename Kernel, typename... Arguments>
void launch(const char* name, const Config& config, Kernel kernel, Arguments... arguments) {
  run_grid(name, config, [&] { kernel(arguments...); });
}

template <typename T>
uint64_t word_of(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof value);
  return word;
}
template <typename T>
T value_of(uint64_t word) {
  T value;
  __builtin_memcpy(&value, &word, sizeof value);
  return value;
}

template <typename T>
T shuffled(const char* call, int line, unsigned mask, T value, int from) {
  return value_of<T>(meet_warp(call, line, mask, word_of(value), from, [](const uint64_t* given, unsigned of, int lane) {
    if (!(of >> lane & 1)) die("a shuffle of mask %08x takes the value of lane %d, which is not in it", of, lane);
    return given[lane];
  }));
}

// All lanes of the mask get `combine` of their values.
template <typename T, typename Combine>
T reduced(const char* call, int line, unsigned mask, T value, Combine) {
  return value_of<T>(meet_warp(call, line, mask, word_of(value), kSameForAll, [](const uint64_t* given, unsigned of, int) {
    const int first = __builtin_ctz(of);
    T all = value_of<T>(given[first]);
    for (int lane = first + 1; lane < 32; ++lane)
      if (of >> lane & 1) all = Combine{}(all, value_of<T>(given[lane]));
    return word_of(all);
  }));
}

struct Add { template <typename T> T operator()(T a, T b) const { return a + b; } };
struct Least { template <typename T> T operator()(T a, T b) const { return b < a ? b : a; } };
struct Most { template <typename T> T operator()(T a, T b) const { return a < b ? b : a; } };
struct And { template <typename T> T operator()(T a, T b) const { return a & b; } };
struct Or { template <typename T> T operator()(T a, T b) const { return a | b; } };
struct Xor { template <typename T> T operator()(T a, T b) const { return a ^ b; } };
struct Second { template <typename T> T operator()(T, T b) const { return b; } };

template <typename T, typename Change>
__attribute__((no_sanitize_thread)) T atomically(T* address, T value, Change change) {
  touch_atomically(address, sizeof(T));
  const T old = *address;
  *address = change(old, value);
  return old;
}

}  // namespace emulated

#define threadIdx (emulated::thread_index())
#define blockIdx (emulated::block_index())
#define blockDim (emulated::block_size())
#define gridDim (emulated::grid_size())
constexpr int warpSize = 32;

// Calls that threads make together say where they stand: those of different lines do not meet.
#define LQRAY_LINE int line = __builtin_LINE()
inline void __syncthreads(LQRAY_LINE) { emulated::meet_block("__syncthreads", line, false); }
inline int __syncthreads_count(int value, LQRAY_LINE) { return emulated::meet_block("__syncthreads_count", line, value); }
inline int __syncthreads_or(int value, LQRAY_LINE) { return emulated::meet_block("__syncthreads_or", line, value) > 0; }
inline int __syncthreads_and(int value, LQRAY_LINE) { return !emulated::meet_block("__syncthreads_and", line, !value); }
inline void __syncwarp(unsigned mask = 0xffffffffu, LQRAY_LINE) {
  emulated::meet_warp("__syncwarp", line, mask, 0, emulated::kSameForAll, [](const uint64_t*, unsigned, int) { return uint64_t{0}; }, true);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, LQRAY_LINE) {
  return emulated::reduced("__ballot_sync", line, mask, static_cast<unsigned>(predicate != 0) << emulated::lane(), emulated::Or{});
}
inline int __any_sync(unsigned mask, int predicate, LQRAY_LINE) {
  return emulated::reduced("__any_sync", line, mask, predicate != 0, emulated::Or{});
}
inline int __all_sync(unsigned mask, int predicate, LQRAY_LINE) {
  return emulated::reduced("__all_sync", line, mask, predicate != 0, emulated::And{});
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, LQRAY_LINE) {
  return emulated::shuffled("__shfl_sync", line, mask, value, (emulated::lane() & ~(width - 1)) | (from & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, LQRAY_LINE) {
  const int from = emulated::lane() ^ bits, end = (emulated::lane() | (width - 1)) + 1;
  return emulated::shuffled("__shfl_xor_sync", line, mask, value, from < end ? from & 31 : emulated::lane());
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, LQRAY_LINE) {
  const int within = emulated::lane() & (width - 1);
  const bool inside = within + static_cast<int64_t>(by) < width;
  return emulated::shuffled("__shfl_down_sync", line, mask, value, emulated::lane() + (inside ? static_cast<int>(by) : 0));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, LQRAY_LINE) {
  const bool inside = static_cast<int64_t>(by) <= (emulated::lane() & (width - 1));
  return emulated::shuffled("__shfl_up_sync", line, mask, value, emulated::lane() - (inside ? static_cast<int>(by) : 0));
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value, LQRAY_LINE) { return emulated::reduced("__reduce_add_sync", line, mask, value, emulated::Add{}); }
template <typename T>
T __reduce_min_sync(unsigned mask, T value, LQRAY_LINE) { return emulated::reduced("__reduce_min_sync", line, mask, value, emulated::Least{}); }
template <typename T>
T __reduce_max_sync(unsigned mask, T value, LQRAY_LINE) { return emulated::reduced("__reduce_max_sync", line, mask, value, emulated::Most{}); }
template <typename T>
T __reduce_or_sync(unsigned mask, T value, LQRAY_LINE) { return emulated::reduced("__reduce_or_sync", line, mask, value, emulated::Or{}); }
#undef LQRAY_LINE
// These order one thread's own accesses; they are no meeting of threads.
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T, typename U> T atomicAdd(T* at, U value) { return emulated::atomically(at, T(value), emulated::Add{}); }
template <typename T, typename U> T atomicMin(T* at, U value) { return emulated::atomically(at, T(value), emulated::Least{}); }
template <typename T, typename U> T atomicMax(T* at, U value) { return emulated::atomically(at, T(value), emulated::Most{}); }
template <typename T, typename U> T atomicAnd(T* at, U value) { return emulated::atomically(at, T(value), emulated::And{}); }
template <typename T, typename U> T atomicOr(T* at, U value) { return emulated::atomically(at, T(value), emulated::Or{}); }
template <typename T, typename U> T atomicXor(T* at, U value) { return emulated::atomically(at, T(value), emulated::Xor{}); }
template <typename T, typename U> T atomicExch(T* at, U value) { return emulated::atomically(at, T(value), emulated::Second{}); }
template <typename T>
T atomicCAS(T* at, T expected, T value) {
  return emulated::atomically(at, value, [=](T old, T given) { return old == expected ? given : old; });
}

#include "cuda_numbers.h"

using cudaStream_t = struct LqrayEmulatedStream*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrWarpSize };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "of the emulated device"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 2 : attribute == cudaDevAttrWarpSize ? 32 : 227 * 1024;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) emulated::allow_shared(value);
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  return *blocks = 1, cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t size, cudaStream_t) { return memset(at, value, size), cudaSuccess; }
