// The emulated machine: what a kernel's threads are made of, and what each call of CUDA asks of the scheduler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulated {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

// torch's current stream.
inline void* current_stream() { return reinterpret_cast<void*>(uintptr_t{0x57EA}); }

struct Config {
  Config(Index grid, Index block, size_t shared = 0, const void* stream = nullptr)
      : grid(grid), block(block), shared(shared), stream(stream) {}
  Index grid, block;
  size_t shared;
  const void* stream;
};

// Of all lanes' values in a warp-wide call: what the lane of this `argument` gets.
constexpr int kSameForAll = -1;
using Resolve = uint64_t (*)(const uint64_t* given, unsigned mask, int argument);

// Runs every thread of every block; ends the process with a word why where a GPU would hang or the result be undefined.
void run_grid(const char* kernel, const Config& config, const std::function<void()>& thread);
void check_launch_bounds(int64_t most_threads);
void allow_shared(int64_t bytes);

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();
int lane();

// The number of threads of the block whose `value` is true; all wait for all.
int meet_block(const char* call, int line, bool value);
// All lanes of `mask` wait for each other; memory operations before it come before those after it only where it orders
// memory, which of CUDA's calls __syncwarp alone promises.
uint64_t meet_warp(const char* call, int line, unsigned mask, uint64_t value, int argument, Resolve resolve,
                   bool orders_memory = false);

// Shared memory of the block, exactly `size` bytes, undefined at first; `site` is its declaration, null the launch's.
void* shared_memory(const void* site, size_t size);

// An atomic operation on these bytes follows.
void touch_atomically(const void* address, size_t size);

[[noreturn]] void die(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulated
