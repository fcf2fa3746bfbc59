// What the scheduler (scheduler.cpp) and the memory checks (accesses.cpp) know of a running grid.
#pragma once

#include <map>
#include <vector>

#include "fibers.h"
#include "machine.h"

namespace emulated {

constexpr int kLanes = 32;
constexpr int kMostThreads = 1024;
constexpr size_t kStack = 256 * 1024 + 1088;  // not a power of two, so that stacks do not share the caches' sets

enum Order { kRandom, kHighest, kLowest, kMixed };

struct Random {  // splitmix64, for std::shuffle, too
  using result_type = uint64_t;
  uint64_t state = 0;
  static constexpr uint64_t min() { return 0; }
  static constexpr uint64_t max() { return ~uint64_t{0}; }
  uint64_t operator()() {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
};

struct Settings {
  int order = kRandom;
  int64_t most_blocks = 0;  // of a grid; 0: as many as were asked for
  int64_t last_blocks = 0;  // only these run; 0: all
  Random random;
};

struct Warp;
struct Block;

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int index = 0;  // in the block
  bool exited = false;
  const char* waits_at = nullptr;  // the call
  int waits_line = 0;
  uint64_t result = 0;
  // For accesses.cpp: this lane's own time, and the latest of each lane's that it is ordered after.
  uint32_t known[kLanes] = {};
  uint32_t& own_time() { return known[index % kLanes]; }
};

struct Meeting {  // of the lanes of a mask
  const char* call;
  int line;
  unsigned mask, arrived = 0;
  uint64_t given[kLanes];
  int argument[kLanes];
};

struct Warp {
  std::vector<Meeting> meetings;
  Thread* lanes[kLanes] = {};
  unsigned existing = 0, exited = 0, ready = 0;  // masks
};

struct Block {
  uint64_t number = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  char* stacks = nullptr;
  // The barrier.
  const char* call = nullptr;
  int line = 0, arrived = 0, trues = 0, left = 0;
  uint32_t barriers = 0;  // passed
  struct Shared {
    char* memory;
    size_t size;
  };
  std::map<const void*, Shared> shared;
};

Thread* current();  // nullptr outside kernels
bool on_a_stack(const void* address);

// accesses.cpp
void forget_accesses();
void forget_accesses(const void* shared, size_t size);
void order_lanes(Warp& warp, unsigned mask);

}  // namespace emulated
